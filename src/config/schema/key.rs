//! The properties of a key besides the type of its value.

/// The properties of a key, declared once, in its table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KeyInfo {
    /// The key as a file writes it.
    pub name: &'static str,
    /// Whether its table needs it.
    pub required: bool,
    /// When a changed value is used.
    pub effect: Effect,
    /// The engines or algorithms whose tables have it; empty if all have it.
    pub only: &'static [&'static str],
    /// The `mode` of the Redis stores that have it; `None` if all have it.
    pub mode: Option<&'static str>,
    /// Why the effective configuration omits it; `None` if it is printed.
    pub unprinted: Option<&'static str>,
}

/// When a changed value is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// With the reload.
    Reload,
    /// After a restart.
    Restart,
    /// When its store is opened: now if the store is new, else after a restart.
    RestartOfStore,
}

impl KeyInfo {
    /// An optional key of every kind of its table, which is printed and reloaded.
    pub(crate) const fn named(name: &'static str) -> Self {
        Self { name, required: false, effect: Effect::Reload, only: &[], mode: None, unprinted: None }
    }

    /// A key that its table needs.
    pub(crate) const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// A change needs a restart.
    pub(crate) const fn restart(self) -> Self {
        Self { effect: Effect::Restart, ..self }
    }

    /// A change needs a restart, unless the store is new.
    pub(crate) const fn restart_of_store(self) -> Self {
        Self { effect: Effect::RestartOfStore, ..self }
    }

    /// Only tables of these engines or algorithms have it.
    pub(crate) const fn only(self, kinds: &'static [&'static str]) -> Self {
        Self { only: kinds, ..self }
    }

    /// Only Redis stores with this `mode` have it.
    pub(crate) const fn in_mode(self, mode: &'static str) -> Self {
        Self { mode: Some(mode), ..self }
    }

    /// The effective configuration omits it.
    pub(crate) const fn unprinted(self, reason: &'static str) -> Self {
        Self { unprinted: Some(reason), ..self }
    }

    /// Whether tables of this engine or algorithm have it.
    pub(crate) fn belongs_to(&self, kind: &str) -> bool {
        self.only.is_empty() || self.only.contains(&kind)
    }
}
