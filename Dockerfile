# The image of rbd-csi: the driver, the tools that it calls, the libraries that these
# need, and nothing else. It needs librbd of the base's release:
#
#   docker build -t rbd-csi .                                             Ceph 20, for all clusters
#   docker build --build-arg BASE=debian:trixie-slim -t rbd-csi .         Ceph 18
#
# Clusters made with Ceph 20.2.4 or 19.2.6 give keys of a kind that older libraries cannot
# read, so forky is the default. `make image` builds it where there is no registry.
ARG BASE=docker.io/library/debian:forky-slim

FROM ${BASE} AS build
# Where apt and Go find what they need, if not at their usual places; none of it stays.
ARG APT_CONFIG=
ARG GOPROXY=
ARG GOSUMDB=
ARG GOFLAGS=
ARG SSL_CERT_FILE=
# Debian's Go is used unless there is one in /usr/local/go, and fetches the one that go.mod
# asks for if it is older.
ENV PATH=/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin GOTOOLCHAIN=auto DEBIAN_FRONTEND=noninteractive
RUN go=$(command -v go || echo golang-go) && \
    apt-get -q update && \
    apt-get -q install -y --no-install-recommends \
      ca-certificates gcc libc6-dev librados-dev librbd-dev make \
      e2fsprogs kmod mount rbd-nbd util-linux xfsprogs $(test -x "$go" || echo "$go")
WORKDIR /src
COPY . .
ARG VERSION=unknown
RUN make build BINARY=/rbd-csi LDFLAGS="-s -w -X main.version=${VERSION}" && \
    deploy/root.sh /root/image /rbd-csi && \
    install -D /rbd-csi /root/image/usr/bin/rbd-csi

FROM scratch
# `ARG BASE` is for both stages: all that is in this one comes from it.
COPY --from=build /root/image /
ARG VERSION=unknown
LABEL org.opencontainers.image.title="rbd-csi" \
      org.opencontainers.image.description="CSI driver for Kubernetes on Ceph RBD" \
      org.opencontainers.image.source="https://github.com/rbd-csi/rbd-csi" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
# The controller needs no more. The node service's pod asks for root itself, because it
# mounts filesystems and makes devices.
USER 65532:65532
ENTRYPOINT ["/usr/bin/rbd-csi"]
