# One image for coordinator and nodes: `docker compose up`. Bring your own code and data as volumes.
FROM python:3.11-slim
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY recipes recipes
COPY examples/federation /federation
RUN pip install --no-cache-dir -c constraints.txt '.[grpc]' && useradd --create-home interfuse && mkdir /work && chown interfuse /work
USER interfuse
WORKDIR /work
ENTRYPOINT ["interfuse"]
