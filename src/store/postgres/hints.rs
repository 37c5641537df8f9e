//! Hints of other instances: a channel of PostgreSQL (`LISTEN`), over a connection of its own.
//!
//! Behind a pooler there are none: it would listen in the session of another program.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::config::Config;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Error};

use super::link::Link;
use super::names::{SchemaNames, quoted};
use super::tls::PostgresTls;
use crate::store::shared::HearText;

/// The pause before another attempt to listen.
const RECONNECT_DELAY: Duration = Duration::from_millis(500);

/// The channel of a store.
pub(super) struct HintChannel {
    name: String,
    config: Config,
    tls: PostgresTls,
    link: Arc<Link>,
    client: Mutex<Option<Client>>,
}

impl HintChannel {
    pub(super) fn new(names: &SchemaNames, config: Config, tls: PostgresTls, link: Arc<Link>) -> Self {
        Self { name: names.channel(), config, tls, link, client: Mutex::default() }
    }

    /// Sends a text to all who listen, if this instance does.
    pub(super) async fn publish(&self, message: String) {
        let client = self.client.lock().await;
        if let Some(client) = &*client {
            let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
                [(&self.name, Type::TEXT), (&message, Type::TEXT)];
            // If it fails the connection is gone, which the listener sees too.
            let _ = client.query_typed("SELECT pg_notify($1, $2)", &parameters).await;
        }
    }

    /// Passes on the texts of the channel.
    pub(super) async fn listen(&self, hear: HearText) {
        while !self.link.is_shared() {
            let listened = self.listen_once(&hear).await;
            *self.client.lock().await = None;
            if let Err(error) = listened
                && error.as_db_error().is_some()
            {
                tracing::debug!(channel = self.name, %error, "hints between instances are interrupted");
            }
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
    }

    /// Listens until the connection ends.
    async fn listen_once(&self, hear: &HearText) -> Result<(), Error> {
        let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
        let messages = async {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message? {
                    hear(notification.payload());
                }
            }
            Ok(())
        };
        let begin = async {
            client.batch_execute(&format!("LISTEN {}", quoted(&self.name))).await?;
            *self.client.lock().await = Some(client);
            std::future::pending::<Result<(), Error>>().await
        };
        tokio::select! {
            ended = messages => ended,
            failed = begin => failed,
        }
    }
}
