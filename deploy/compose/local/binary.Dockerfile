# A store's server as an image with nothing else, for machines without an image registry.
FROM scratch
COPY bin/ /usr/local/bin/
COPY tmp /tmp
ENV PATH=/usr/local/bin
