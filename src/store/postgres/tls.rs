//! TLS of connections to PostgreSQL: the one client of shared stores, as the client library takes it.

use std::convert::Infallible;

use tokio_postgres::Socket;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::tls::{TlsClient, TlsError, TlsSettings, untrusting_config};

/// Makes the TLS sessions of connections.
#[derive(Clone)]
pub(super) struct PostgresTls {
    sessions: MakeRustlsConnect,
    /// The name that the server's certificate must carry, instead of the host of the address.
    server_name: Option<String>,
}

impl PostgresTls {
    /// TLS with the settings. Without them it trusts nobody, because it is not used.
    pub(super) fn new(settings: Option<&TlsSettings>) -> Result<Self, TlsError> {
        let config = match settings {
            Some(settings) => TlsClient::new(settings)?.config(),
            None => untrusting_config(),
        };
        let server_name = settings.and_then(|settings| settings.server_name.clone());
        Ok(Self { sessions: MakeRustlsConnect::new(config), server_name })
    }
}

impl MakeTlsConnect<Socket> for PostgresTls {
    type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
    type Error = Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<Self::TlsConnect, Infallible> {
        let name = self.server_name.as_deref().unwrap_or(host);
        MakeTlsConnect::<Socket>::make_tls_connect(&mut self.sessions, name)
    }
}
