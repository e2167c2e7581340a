FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY hpo hpo
COPY studies studies
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .

# A new volume gets the owner of the folder that it is mounted on.
RUN useradd --uid 10001 --user-group --home-dir /hpo --shell /usr/sbin/nologin hpo \
    && install -d -o hpo -g hpo /data /hpo /hpo/results
USER 10001
WORKDIR /hpo

# The default database is a file in the volume. A user's studies belong into /hpo/studies.
ENV PYTHONUNBUFFERED=1 HPO_DATA_DIR=/data HPO_STORAGE=sqlite:////data/hpo.db
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s \
    CMD ["python", "-c", "import os, sys; from hpo.storage.database.connection import Database; \
sys.excepthook = lambda _, error, __: print(error, file=sys.stderr); \
Database.parse(os.environ['HPO_STORAGE']).check_exists()"]
CMD ["python", "-m", "hpo.launch"]
