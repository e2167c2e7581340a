FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY hpo hpo
COPY studies studies
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .

# A new volume takes the owner of the folder that it is mounted on.
RUN useradd --uid 10001 --user-group --home-dir /hpo --shell /usr/sbin/nologin hpo \
    && install -d -o hpo -g hpo /data /hpo /hpo/results
USER 10001
WORKDIR /hpo

# Without a database server a file in the volume serves; studies of one's own are looked for in /hpo/studies.
ENV PYTHONUNBUFFERED=1 HPO_DATA_DIR=/data HPO_STORAGE=sqlite:////data/hpo.db
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s \
    CMD ["python", "-c", "import os, sys; from hpo.storage import check_exists, parse_url; \
sys.excepthook = lambda _, error, __: print(error, file=sys.stderr); \
check_exists(parse_url(os.environ['HPO_STORAGE']))"]
CMD ["python", "-m", "hpo.launch"]
