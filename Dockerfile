# One binary on a small Debian: a node, a terminal and a publisher are the same image.
#
# BASE must be no older than where the binary is linked. BINARY takes one from the context instead of building it; then
# BUILDER may be any image, and nothing is fetched.
ARG BUILDER=rust:1.95-bookworm
ARG BASE=debian:bookworm-slim

FROM ${BUILDER} AS build
ARG BINARY=
WORKDIR /source
COPY . .
RUN if [ -z "$BINARY" ]; then cargo build --release --locked; fi && \
    install -D "${BINARY:-target/release/reveille}" /out/reveille
# To find what a build leaves behind.
LABEL stage=reveille-build

FROM ${BASE}
# A volume takes its owner from the folder that it is first laid over; init.sh fills those below /init.
RUN install -d -o 10001 -g 10001 -m 700 /var/lib/reveille \
    /init/authority /init/node-1 /init/node-2 /init/node-3 /init/terminal-1 /init/terminal-2 /init/publisher
COPY --from=build /out/reveille /usr/local/bin/
COPY docker/init.sh docker/entry.sh docker/publisher.sh /usr/local/bin/
USER 10001:10001
WORKDIR /var/lib/reveille
ENTRYPOINT ["entry.sh"]
CMD ["--help"]
