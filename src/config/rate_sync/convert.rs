//! Writes a file of rate-sync in our own form, as TOML with comments. It loads to the same limits.

use std::fmt::Write;

use super::keys;
use crate::config::configuration::Config;
use crate::config::document::node::{Key, TreeNode, Value, WrittenText};
use crate::config::schema;
use crate::config::schema::StoreKind;
use crate::config::schema::values::shown_duration;
use crate::limiter::{Algorithm, Limiter, OnStoreError};

/// The text of a file of rate-sync in our own form. `tree` is the file as it was read, `file` its tables, and `config`
/// what was built of them.
pub(in crate::config) fn text(tree: &TreeNode, file: &schema::File, config: &Config) -> String {
    let mut text = Toml(format!(
        "# Converted from {} by tollgate convert. Workers ask for these limiters by name: docs/workers.md\n",
        config.files.join(", ")
    ));
    for (key, node) in entries(tree) {
        match key.text.as_str() {
            "fastapi" => text.0 += &format!("\n# [fastapi]: {}\n", keys::FASTAPI),
            "stores" => {
                for (name, store) in entries(node) {
                    let item = file.stores.named().iter().find(|item| item.name == name.text);
                    let kind = item.and_then(|item| item.value.as_ref()?.engine.copied());
                    text.header(&["stores", &name.text]);
                    text.store(store, kind.unwrap_or(StoreKind::Memory));
                }
            }
            "limiters" => {
                for (name, node) in entries(node) {
                    let item = file.limiters.named().iter().find(|item| item.name == name.text);
                    let built = config.book.limiters.iter().find(|limiter| limiter.name == name.text);
                    text.header(&["limiters", &name.text]);
                    if let (Some(written), Some(built)) = (item.and_then(|item| item.value.as_ref()), built) {
                        text.limiter(node, written, built, config);
                    }
                }
            }
            table => {
                text.header(&[table]);
                entries(node).iter().for_each(|(key, node)| text.key(&key.text, &value(node)));
            }
        }
    }
    text.0
}

/// The text of a file, line by line.
struct Toml(String);

impl Toml {
    fn header(&mut self, path: &[&str]) {
        let path: Vec<String> = path.iter().map(|key| bare_or_quoted(key)).collect();
        self.0 += &format!("\n[{}]\n", path.join("."));
    }

    fn comment(&mut self, text: &str) {
        self.0 += &format!("# {text}\n");
    }

    fn key(&mut self, key: &str, value: &str) {
        self.0 += &format!("{} = {value}\n", bare_or_quoted(key));
    }

    fn store(&mut self, node: &TreeNode, kind: StoreKind) {
        for (key, node) in entries(node) {
            let key = key.text.as_str();
            let became = keys::of_store(key, kind);
            if let Some(became) = became.filter(|became| Some(*became) == keys::without_effect(key)) {
                self.comment(&format!("{key}: {became}"));
                continue;
            }
            if let Some(became) = became {
                self.comment(became);
            }
            self.key(key, &value(node));
        }
    }

    fn limiter(&mut self, node: &TreeNode, written: &schema::Limiter, built: &Limiter, config: &Config) {
        for (key, node) in entries(node) {
            let key = key.text.as_str();
            // With a variable the value is that of each start.
            let fixed = !matches!(node.value, Value::Text(WrittenText { written: Some(_), .. }));
            let quota = built.quota.as_ref();
            let own = match (key, quota, built.workers.timeout) {
                ("algorithm", None, _) if fixed => Some(("algorithm", "concurrency".to_owned())),
                ("window_seconds", Some(quota), _) if fixed => Some(("window", shown_duration(quota.window))),
                ("timeout", _, Some(timeout)) if fixed => Some(("timeout", shown_duration(timeout))),
                ("fail_closed", ..) if fixed => match built.on_store_error {
                    OnStoreError::Deny => Some(("on_store_error", "deny".to_owned())),
                    OnStoreError::Allow => Some(("on_store_error", "allow".to_owned())),
                    OnStoreError::Local => None,
                },
                _ => None,
            };
            if let Some(became) = keys::of_limiter(key, built) {
                self.comment(&became);
            }
            match own {
                Some((key, value)) => self.key(key, &quoted(&value)),
                None => self.key(key, &value(node)),
            }
            let burst = quota.and_then(|quota| match quota.algorithm {
                Algorithm::TokenBucket { burst, .. } => burst,
                _ => None,
            });
            if let Some(burst) = burst.filter(|_| key == "rate_per_second" && fixed && written.burst.is_absent()) {
                self.key("burst", &burst.to_string());
            }
            let slots = built.concurrency.filter(|_| key == "max_concurrent" && written.lease.is_absent());
            if let Some(slots) = slots {
                self.key("lease", &quoted(&shown_duration(std::time::Duration::from_micros(slots.lease))));
            }
        }
        for (key, became) in keys::absent(written, built, config) {
            self.comment(&became);
            match (key, built.workers.timeout) {
                ("timeout", Some(timeout)) => self.key("timeout", &quoted(&shown_duration(timeout))),
                _ => self.key("on_store_error", &quoted("local")),
            }
        }
        self.comment("workers ask for it by name, with any key");
        self.key("direct", "true");
        if built.workers.wait && written.wait.is_absent() {
            self.comment("callers that wait are served in the order in which they came, over all instances");
            self.key("wait", "true");
        }
    }
}

/// The entries of a table. Empty for another value.
fn entries(node: &TreeNode) -> &[(Key, TreeNode)] {
    match &node.value {
        Value::Table(entries) => entries,
        _ => &[],
    }
}

/// A value as TOML, with its variables as written.
fn value(node: &TreeNode) -> String {
    match &node.value {
        Value::Bool(switch) => switch.to_string(),
        Value::Number(number) => number.whole.map_or_else(|| format!("{:?}", number.float), |whole| whole.to_string()),
        Value::Text(WrittenText { text, written }) => quoted(written.as_ref().unwrap_or(text)),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(value).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(entries) => {
            let entries: Vec<String> =
                entries.iter().map(|(key, node)| format!("{} = {}", bare_or_quoted(&key.text), value(node))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        // No key of a configuration has such a value.
        Value::Null | Value::Other(_) | Value::Unexpanded => quoted(""),
    }
}

/// A key as TOML.
fn bare_or_quoted(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if bare { key.to_owned() } else { quoted(key) }
}

/// A text as a basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                write!(quoted, "\\u{:04X}", u32::from(c)).expect("writing to a text never fails");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
