//! The quoted names of the schema's tables, index and functions.

/// The schema, and the prefix of every name in it.
#[derive(Clone, Debug)]
pub(super) struct SchemaNames {
    schema: String,
    prefix: String,
}

impl SchemaNames {
    /// The names for a schema and a prefix that are valid in names.
    pub(super) fn new(schema: &str, prefix: &str) -> Self {
        Self { schema: schema.to_owned(), prefix: prefix.to_owned() }
    }

    /// The name of the schema, unquoted.
    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// The name of the channel of hints, unquoted.
    pub(super) fn channel(&self) -> String {
        let Self { schema, prefix } = self;
        // PostgreSQL cuts longer names, and refuses longer channels.
        format!("{schema}.{prefix}hints").chars().take(63).collect()
    }

    /// The quoted name of a table, index or function, with its schema where SQL takes one.
    pub(super) fn of(&self, object: &str) -> String {
        let Self { schema, prefix } = self;
        match object {
            "meta" => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}meta"))),
            "leases_by_expiry" => quoted(&format!("{prefix}leases_v1_by_expiry")),
            "values_by_moment" => quoted(&format!("{prefix}values_v1_by_moment")),
            // Of version 6 of the schema, beside the functions that instances of earlier versions call.
            "apply_of_1" => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}apply_v1"))),
            "apply_of_2" => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}apply_v1_2"))),
            "apply_of_3" => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}apply_v1_3"))),
            "apply_of_4" => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}apply_v1_4"))),
            "apply_of_5" => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}apply_v1_5"))),
            "apply" => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}apply_v1_6"))),
            "holds_by_due" => quoted(&format!("{prefix}holds_v1_by_due")),
            object => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}{object}_v1"))),
        }
    }

    /// Replaces the placeholders of a template.
    pub(super) fn fill(&self, template: &str, unlogged: bool) -> String {
        let objects = [
            "meta",
            "counters",
            "grants",
            "leases",
            "leases_by_expiry",
            "apply",
            "apply_of_1",
            "apply_of_2",
            "apply_of_3",
            "apply_of_4",
            "apply_of_5",
            "values",
            "values_by_moment",
            "value_room",
            "value_wait",
            "undo_values",
            "holds",
            "held",
            "holds_by_due",
            "correct",
            "correct_log",
            "hold_status",
            "take_back",
            "drop_hold",
            "hold",
            "end_holds",
            "change_hold",
            "rescale",
            "bucket",
            "forget",
            "sweep",
        ];
        let mut sql = template.replace("{unlogged}", if unlogged { "UNLOGGED" } else { "" });
        for object in objects {
            sql = sql.replace(&format!("{{{object}}}"), &self.of(object));
        }
        sql
    }
}

/// Quotes a name as an SQL identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
