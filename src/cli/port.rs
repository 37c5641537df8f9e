//! Where a command finds the port of a running server, and a token for it.

use std::path::Path;

use anyhow::anyhow;
use tollgate::config::Config;
use tollgate::settings::Settings;

use super::address::{ServerAddress, token_in, variable};

/// A port of a server: the admin port, or that of the API.
#[derive(Debug)]
pub(super) struct Port {
    /// The environment variable that names its address.
    pub(super) address_variable: &'static str,
    /// The environment variable with a token for it.
    pub(super) token_variable: &'static str,
    /// Its address in a configuration.
    pub(super) address: fn(&Settings) -> anyhow::Result<ServerAddress>,
    /// A token in a configuration.
    pub(super) token: fn(Settings) -> Option<String>,
}

impl Port {
    /// Finds the address and a token: by the arguments, then by the environment, then in the configuration.
    pub(super) fn find(
        &self,
        server: Option<&str>,
        token_file: Option<&Path>,
        config: Option<&Path>,
    ) -> anyhow::Result<(ServerAddress, Option<String>)> {
        let named = server.map(str::to_owned).or_else(|| variable(self.address_variable));
        // A named configuration is read even if the address is known, because it may have the token.
        let settings = match named.is_none() || config.is_some() {
            true => Some(load_settings(config)?),
            false => None,
        };
        let address = match (&named, &settings) {
            (Some(named), _) => ServerAddress::parse(named)?,
            (None, Some(settings)) => (self.address)(settings)?,
            (None, None) => (self.address)(&Settings::default())?,
        };
        let token = match token_file {
            Some(file) => Some(token_in(file)?),
            None => variable(self.token_variable).or_else(|| settings.and_then(self.token)),
        };
        Ok((address, token))
    }
}

fn load_settings(path: Option<&Path>) -> anyhow::Result<Settings> {
    let load = Config::load(path);
    load.map(|config| config.server).map_err(|errors| {
        anyhow!("{errors}\nthe configuration has the address of the server; name it with --server instead")
    })
}
