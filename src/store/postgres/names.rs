//! The quoted names of the schema's tables, index and functions.

/// The schema, and the prefix of every name in it.
#[derive(Clone, Debug)]
pub(super) struct SchemaNames {
    schema: String,
    prefix: String,
}

impl SchemaNames {
    /// Of a schema and prefix that are fit for names.
    pub(super) fn new(schema: &str, prefix: &str) -> Self {
        Self { schema: schema.to_owned(), prefix: prefix.to_owned() }
    }

    /// The name of the schema, as it was given.
    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// The quoted name of something in the schema.
    pub(super) fn of(&self, thing: &str) -> String {
        let Self { schema, prefix } = self;
        match thing {
            "meta" => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}meta"))),
            "leases_by_expiry" => quoted(&format!("{prefix}leases_v1_by_expiry")),
            thing => format!("{}.{}", quoted(schema), quoted(&format!("{prefix}{thing}_v1"))),
        }
    }

    /// A template with its names.
    pub(super) fn fill(&self, template: &str, unlogged: bool) -> String {
        let mut sql = template.replace("{unlogged}", if unlogged { "UNLOGGED" } else { "" });
        for thing in ["meta", "counters", "grants", "leases", "leases_by_expiry", "apply", "rescale", "forget", "sweep"]
        {
            sql = sql.replace(&format!("{{{thing}}}"), &self.of(thing));
        }
        sql
    }
}

/// A name as an identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
