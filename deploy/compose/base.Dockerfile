# The lab's base: Debian with what the services need. FROM is the result of debootstrap in
# scripts/compose-image, so no image registry is needed. With a registry, any Debian bookworm image
# will do.
ARG FROM
FROM ${FROM}
RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d \
 && mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \
 && apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      ca-certificates haproxy iproute2 postgresql-15 procps \
 && apt-get clean && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 65532 tanist && useradd --uid 65532 --gid tanist --no-create-home --shell /usr/sbin/nologin tanist \
 && install -d -o postgres -g postgres -m 700 /var/lib/postgresql/lab \
 && install -d -o tanist -g tanist -m 700 /var/lib/etcd \
 && install -d -o tanist -g tanist -m 755 /etc/haproxy /run/tanist /run/haproxy
