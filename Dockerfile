# tollgate, and nothing else: docker build -t tollgate .
#
# A rules file at /etc/tollgate/tollgate.toml is found without being named.

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin tollgate

FROM debian:bookworm-slim
COPY --from=build /src/target/release/tollgate /usr/local/bin/tollgate
# Whom rediss:// and PostgreSQL over TLS trust where no tls_ca says so: the slim image has no certificates.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN useradd --system --no-create-home tollgate
USER tollgate
EXPOSE 8080 8081
ENTRYPOINT ["tollgate"]
CMD ["serve"]
