# HAProxy and `tanist haproxy` in one container, on top of an image with HAProxy.
ARG TANIST_IMAGE=tanist
ARG HAPROXY_IMAGE
FROM ${TANIST_IMAGE} AS tanist
FROM ${HAPROXY_IMAGE}
COPY --from=tanist /usr/local/bin/tanist /usr/local/bin/tanist
USER 65532:65532
