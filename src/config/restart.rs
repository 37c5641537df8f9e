//! The settings that change only with a restart, as the tables of the schema mark them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::configuration::Config;
use super::print;
use super::schema::decode::Decode;
use super::schema::{Effect, File};

/// The settings of a configuration that change only with a restart, by key.
#[derive(Clone, Debug)]
pub struct RestartSettings(pub(crate) BTreeMap<String, RestartSetting>);

/// A setting that changes only with a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RestartSetting {
    /// Its value as the effective configuration prints it, or [`ABSENT`].
    pub(crate) value: String,
    /// The store that uses it only when it is opened. A new store uses it at once.
    pub(crate) opens: Option<String>,
}

/// The text shown for an absent value.
pub(crate) const ABSENT: &str = "none";

impl RestartSettings {
    /// The restart settings of a configuration.
    pub fn of(config: &Config) -> Self {
        let mut keys = Vec::new();
        File::keys("", &mut keys);
        let tree = print::tree(config);
        let text = |value: Option<&Value>| match value {
            None => ABSENT.to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let mut settings = BTreeMap::new();
        for (path, key) in keys.into_iter().filter(|(_, key)| key.effect != Effect::Reload) {
            let Some(of_store) = path.strip_prefix("stores.*.") else {
                let value = path.split('.').try_fold(&tree, |table, key| table.get(key));
                settings.insert(path.clone(), RestartSetting { value: text(value), opens: None });
                continue;
            };
            for store in &config.stores {
                let opens = (key.effect == Effect::RestartOfStore).then(|| store.name.clone());
                if opens.is_some() && !key.belongs_to(store.config.kind()) {
                    continue;
                }
                let value = text(tree["stores"][&store.name].get(of_store));
                settings.insert(format!("stores.{}.{of_store}", store.name), RestartSetting { value, opens });
            }
        }
        Self(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SourceText;

    #[test]
    fn the_keys_that_need_a_restart_are_those_whose_tables_say_so() {
        let text = "[stores.a]\nengine = 'memory'\nsnapshot = 'kept'\nsnapshot_interval = '90s'\n\
                    [stores.b]\nengine = 'redis'\nurl = 'redis://127.0.0.1'\n[server]\nadmin = 'off'\n";
        let source = SourceText { name: "a.toml".to_owned(), text: text.to_owned() };
        let config = Config::read(&[source], &|_| None).expect("nothing is wrong");
        let settings = RestartSettings::of(&config).0;
        let of = |key: &str| settings.get(key).map(|setting| setting.value.as_str());
        assert_eq!(of("server.grpc"), Some("0.0.0.0:8081"));
        assert_eq!(of("server.admin"), Some("off"));
        assert_eq!(of("server.bounds.idle_timeout"), Some("1h"));
        assert_eq!(of("server.bounds.checks"), None, "it is reloaded");
        assert_eq!(of("log.format"), Some("text"));
        assert_eq!(of("stores.a.max_memory"), Some("268435456"));
        assert_eq!(of("stores.a.max_keys"), Some(ABSENT));
        assert_eq!(of("stores.a.snapshot_interval"), Some("90s"));
        assert_eq!(of("stores.b.max_memory"), None, "a Redis store has none");
        assert_eq!(of("stores.b.snapshot"), Some(ABSENT));
        assert_eq!(of("server.api"), Some(ABSENT));
        assert_eq!(of("server.bounds.max_wait"), None, "it is reloaded");
        assert_eq!(settings.len(), 5 + 12 + 6 + 4, "{:?}", settings.keys());
    }
}
