// Three Better Auth servers, one for each kind of key, as its documentation sets them up: sign up,
// and fetch a token as a frontend does. Prints what it got as one line of JSON, and serves the keys
// until its input ends.
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";
import { SignJWT } from "jose";

async function serve(keyPairConfig) {
  const server = createServer();
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const baseURL = `http://127.0.0.1:${server.address().port}`;
  const auth = betterAuth({
    baseURL,
    secret: "the secret that its cookies are signed with",
    database: memoryAdapter({ user: [], session: [], account: [], verification: [], jwks: [] }),
    emailAndPassword: { enabled: true },
    telemetry: { enabled: false },
    plugins: [jwt(keyPairConfig && { jwks: { keyPairConfig } })],
  });
  server.on("request", toNodeHandler(auth));

  const signedUp = await fetch(`${baseURL}/api/auth/sign-up/email`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Origin: baseURL },
    body: JSON.stringify({ name: "Zoë", email: "zoe@example.com", password: "long enough" }),
  });
  const { user } = await signedUp.json();
  const cookie = signedUp.headers.getSetCookie().map((each) => each.split(";")[0]).join("; ");
  const answer = await fetch(`${baseURL}/api/auth/token`, { headers: { cookie } });
  const { token } = await answer.json();
  return { url: baseURL, user: user.id, token };
}

// jose with a secret that both sides know, as its documentation signs.
async function signWith(secret) {
  const signer = new SignJWT({}).setProtectedHeader({ alg: "HS256" }).setSubject("zoe");
  return signer.setIssuedAt().setExpirationTime("5m").sign(new TextEncoder().encode(secret));
}

const made = {
  EdDSA: await serve(), // the default
  ES256: await serve({ alg: "ES256" }),
  RS256: await serve({ alg: "RS256", modulusLength: 2048 }),
  HS256: { user: "zoe", token: await signWith(process.argv[2]) },
};
console.log(JSON.stringify(made));
process.stdin.resume().on("end", () => process.exit());
