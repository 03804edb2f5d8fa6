# HAProxy and Prometheus from Debian's packages, with the interface of their official images: for
# deploy/check.sh, which runs where no image can be pulled.
ARG BASE
FROM ${BASE} AS peers
RUN apt-get update \
 && apt-get install -y --no-install-recommends haproxy prometheus \
 && rm -rf /var/lib/apt/lists/* \
 && mkdir /prometheus && chown prometheus /prometheus

FROM peers AS haproxy
USER haproxy
STOPSIGNAL SIGUSR1

FROM peers AS prometheus
USER prometheus
ENTRYPOINT ["prometheus"]
