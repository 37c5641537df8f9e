# An image with tollgate alone: docker build -t tollgate .
#
# It serves the configuration in /etc/tollgate, for example a mounted /etc/tollgate/tollgate.toml.

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin tollgate

FROM debian:bookworm-slim
COPY --from=build /src/target/release/tollgate /usr/local/bin/tollgate
# The default roots for TLS to Redis and PostgreSQL, when tls_ca is not set. The slim image has no certificates.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN useradd --system --no-create-home tollgate
USER tollgate
EXPOSE 8080 8081
ENTRYPOINT ["tollgate"]
CMD ["serve"]
