# An image of tollgate: docker build -t tollgate .
#
# It reads the rules that are mounted at /etc/tollgate, for example /etc/tollgate/tollgate.toml.

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin tollgate

FROM debian:bookworm-slim
COPY --from=build /src/target/release/tollgate /usr/local/bin/tollgate
# The certificates that rediss:// and PostgreSQL over TLS trust without tls_ca: the slim image has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN useradd --system --no-create-home tollgate
USER tollgate
EXPOSE 8080 8081
ENTRYPOINT ["tollgate"]
CMD ["serve"]
