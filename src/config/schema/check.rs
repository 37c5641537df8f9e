//! The table of what `tollgate check` accepts.

use super::decode::{Decode, table, word};
use super::values::List;
use crate::config::document::node::TreeNode;
use crate::config::document::problem::{Location, Problems};
use crate::config::document::warning::WarningKind;

table! {
    /// How the configuration is checked.
    Check {
        /// Kinds of warnings that are meant: they are not reported. `docs/check.md` lists all kinds.
        accept: List<WarningKind>,
    }
}

impl Decode for WarningKind {
    fn expected() -> String {
        "the name of a warning".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        let name = word(node, location, Self::NAMES, problems)?;
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}
