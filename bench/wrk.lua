-- wrk -s wrk.lua URL -- OP USERS TASKS SEED THINK_MS CONNECTIONS TARGET [TOKENS_FILE]
--
-- OP is get, list, create, toggle, change or mix; PocketBase as TARGET has paths of its own. Task n belongs to user 1 + (n - 1) % USERS, so that ids and
-- owners are drawn over the whole data. Created tasks go to users of their own: every list stays as long as
-- it was loaded. With TOKENS_FILE (line n is user n's bearer token) a get carries the owner's token.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

-- Globals, since done() can only read those of another thread.
last_request, stalled_seconds = nil, 0

function init(args)
  local op, users, tasks, seed = args[1], tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local think_ms, tokens_file = tonumber(args[5]), args[8]
  local random, format, time = math.random, string.format, os.time
  math.randomseed(seed)

  local tokens = {}
  if tokens_file then
    for line in io.lines(tokens_file) do
      table.insert(tokens, { Authorization = 'Bearer ' .. line })
    end
  end
  local json = { ['Content-Type'] = 'application/json' }
  local fields = '"title": "Buy milk and bread", "description": "Two of each, and be home by six o\'clock.", '
    .. '"priority": "high", "due_date": "2026-12-24", "tags": ["home", "errand"]}'
  local body = '{' .. fields

  local function draw()
    local task = random(tasks)
    return task, 1 + (task - 1) % users
  end

  local requests = {
    get = function()
      local task, user = draw()
      return wrk.format('GET', format('/api/user-%d/tasks/%d', user, task), tokens[user])
    end,
    list = function()
      return wrk.format('GET', format('/api/user-%d/tasks', random(users)))
    end,
    create = function()
      return wrk.format('POST', format('/api/user-%d/tasks', users + random(users)), json, body)
    end,
    toggle = function()
      local task, user = draw()
      return wrk.format('PATCH', format('/api/user-%d/tasks/%d/complete', user, task))
    end,
    change = function()
      local task, user = draw()
      local path = format('/api/user-%d/tasks/%d', user, task)
      return wrk.format('PATCH', path, json, format('{"title": "Buy milk %d"}', random(tasks)))
    end,
  }
  if args[7] == 'pocketbase' then
    -- As its JavaScript client asks.
    local records = '/api/collections/tasks/records'
    requests = {
      get = function()
        return wrk.format('GET', format('%s/%015d', records, draw()), json)
      end,
      list = function()
        local user = format('user_id%%20%%3D%%20%%22user-%d%%22', random(users))
        local page = '?page=1&perPage=10&filter=' .. user .. '&sort=-created_at'
        return wrk.format('GET', records .. page, json)
      end,
      create = function()
        local owned = format('{"user_id": "user-%d", ', users + random(users)) .. fields
        return wrk.format('POST', records, json, owned)
      end,
      change = function()
        local path = format('%s/%015d', records, draw())
        return wrk.format('PATCH', path, json, format('{"title": "Buy milk %d"}', random(tasks)))
      end,
    }
  end
  local names = { 'get', 'list', 'create', 'toggle' }
  requests.mix = function()
    return requests[names[random(4)]]()
  end
  local make = requests[op]

  function request()
    local now = time()
    if last_request and now > last_request + 1 then
      stalled_seconds = stalled_seconds + now - last_request - 1
    end
    last_request = now
    return make()
  end

  if think_ms > 0 then
    -- The first wait of every connection is drawn, so that they do not all ask at once for ever.
    local started, connections = 0, tonumber(args[6])
    function delay()
      started = started + 1
      return started <= connections and random(0, think_ms) or think_ms
    end
  end
end

function done(summary, latency)
  local stalled = 0
  for _, thread in ipairs(threads) do
    stalled = stalled + thread:get('stalled_seconds')
      + math.max(0, os.time() - thread:get('last_request') - 1)
  end
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "p50": %d, "p95": %d, "p99": %d, "longest": %d, '
      .. '"status": %d, "socket": %d, "timeouts": %d, "stalled_seconds": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(95),
    latency:percentile(99), latency.max, errors.status, errors.connect + errors.read + errors.write,
    errors.timeout, stalled))
end
