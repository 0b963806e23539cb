# What pip needs stays in the first stage. Dependencies come before the code: they change less often.
FROM python:3.12-slim AS dependencies
COPY requirements.txt .
RUN python -m venv --without-pip /venv \
    && python -m pip --python /venv/bin/python install --no-cache-dir -r requirements.txt

FROM python:3.12-slim
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATABASE_URL=sqlite:////data/tasks.db
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin tasks \
    && install --directory --owner tasks --mode 700 /data \
    && python -m pip uninstall --yes pip
COPY --from=dependencies /venv /venv
WORKDIR /app
COPY . .
USER 10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
# No shell in between: SIGTERM reaches uvicorn, which ends what is under way and then itself.
# Why each option: docs/production.md.
ENTRYPOINT ["uvicorn", "main:app", "--host", "0.0.0.0", \
    "--timeout-keep-alive", "75", "--timeout-graceful-shutdown", "25"]
