# Kizashi's image: `init`, `worker`, `gateway` and every other command. Built by docker-compose.yml.
#
# The first stage installs from the hash-pinned lock; the second holds the result and no tools.

FROM python:3.11.15-slim-bookworm AS build
WORKDIR /src
COPY requirements/build.txt requirements/gateway.txt requirements/
RUN python -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt \
    && /opt/tools/bin/uv venv --python /usr/local/bin/python /opt/kizashi \
    && /opt/tools/bin/uv pip install --no-cache --compile-bytecode --require-hashes \
        --python /opt/kizashi/bin/python -r requirements/gateway.txt
# Our own code comes last: a change of it leaves the layers above as they are.
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY detectors detectors
COPY pipeline pipeline
COPY dashboards dashboards
COPY gateway gateway
RUN /opt/tools/bin/hatchling build --target wheel --directory /dist \
    && /opt/tools/bin/uv pip install --no-cache --compile-bytecode --no-deps --offline \
        --python /opt/kizashi/bin/python /dist/*.whl
COPY deploy/worker_health.py /opt/kizashi/

FROM python:3.11.15-slim-bookworm
RUN pip uninstall --yes --root-user-action=ignore pip setuptools wheel \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin kizashi \
    && install --directory --owner=kizashi /var/lib/kizashi
COPY --from=build /opt/kizashi /opt/kizashi
ENV PATH=/opt/kizashi/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# What is not in Kafka or ClickHouse is written here, and nowhere else.
WORKDIR /var/lib/kizashi
USER 10001:10001
ENTRYPOINT ["kizashi"]
CMD ["--help"]
