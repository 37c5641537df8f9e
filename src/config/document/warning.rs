//! The kinds of warnings, each with its stable name.

/// Declares the kinds of warnings: the name, what the warning is about, and what to do.
macro_rules! kinds {
    ($( $variant:ident $name:literal: $about:literal, $remedy:literal; )*) => {
        /// A kind of warning. Its name is stable: `[check] accept` and the output of `tollgate check --json` use it.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[non_exhaustive]
        pub enum WarningKind { $( #[doc = $about] $variant, )* }

        impl WarningKind {
            /// All kinds, in the order of the documentation.
            pub const ALL: &'static [WarningKind] = &[$( WarningKind::$variant ),*];

            /// The names of all kinds.
            pub(in crate::config) const NAMES: &'static [&'static str] = &[$( $name ),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $( WarningKind::$variant => $name, )* }
            }

            /// What the warning is about.
            pub fn about(self) -> &'static str {
                match self { $( WarningKind::$variant => $about, )* }
            }

            /// What to do.
            pub fn remedy(self) -> &'static str {
                match self { $( WarningKind::$variant => $remedy, )* }
            }
        }
    };
}

kinds! {
    NoRules "no_rules":
        "There are no rules, and a limiter that workers cannot ask for by name, so every request passes.",
        "Add a rule that applies the limiter, or set `direct = true` if workers ask for it by name.";
    AuthzWithoutRules "authz_without_rules":
        "The domain of `[authz]` has no rules, so every ext_authz request passes.",
        "Correct `authz.domain`, or add rules to that domain.";
    ApiWithoutRules "api_without_rules":
        "`server.api_domain` has no rules, and no limiter says `direct = true`, so calls that name no domain fail.",
        "Correct the name, or add rules to that domain.";
    UnusedDomain "unused_domain":
        "The settings of a domain that has no rules.",
        "Correct the name, or remove the table.";
    SimilarDomain "similar_domain":
        "The domain of a rule is one letter away from a domain that more rules use.",
        "Correct the name. If both domains exist, give each a table: `[domains.NAME]`.";
    UnreachableRule "unreachable_rule":
        "A rule whose descriptors all match an earlier rule that ends the walk.",
        "Move it before that rule, or remove it.";
    DuplicateRule "duplicate_rule":
        "A rule that matches the same and does the same as an earlier one.",
        "Remove it, or correct its `match` or `apply`.";
    NoEffectInShadow "no_effect_in_shadow":
        "`final` or `action = \"allow\"` in a rule with `mode = \"shadow\"`: later rules still apply.",
        "Remove the key, or the mode.";
    LostRelease "lost_release":
        "`lost = \"release\"`: who breaks a request off before its lease is settled pays nothing.",
        "Remove it, so that a lost hold stays charged.";
    RedirectWithoutLocation "redirect_without_location":
        "A redirect as the status of refusals: no rule can set the header `Location`.",
        "Choose a status from 400 to 599.";
    RegularExpression "regular_expression":
        "A literal that looks like a regular expression. Only `*` is special in a literal.",
        "Write a pattern with `*`, or a list of literals.";
    PathTemplate "path_template":
        "A path with a part in the form of a placeholder, such as `{id}` or `:id`, which is compared as text.",
        "Write `*` for the part.";
    QueryInPath "query_in_path":
        "A path with a query or fragment. Both are removed, so the rule matches the path with any query.",
        "Write the path alone, and match a parameter by an entry `{ query = ... }` of `[authz.entries]`.";
    RelativePath "relative_path":
        "A path that does not begin with a slash.",
        "Write the slash.";
    UnknownMethod "unknown_method":
        "A method that looks like a misspelt one, or like several.",
        "Write a method, or a list of methods.";
    OuterSpace "outer_space":
        "White space at the beginning or end of a literal or of an entry's name.",
        "Remove it, or normalise the entry with `trim`.";
    HostBits "host_bits":
        "A block of addresses with bits after its prefix, such as `10.1.2.3/8`.",
        "Write the block, or correct its length.";
    UnicodeHost "unicode_host":
        "A host with letters outside ASCII. Clients send such names in their ASCII form, which begins with `xn--`.",
        "Write the ASCII form.";
    LooseHost "loose_host":
        "A host pattern such as `*example.com`, which matches `badexample.com` too.",
        "Write `[\"example.com\", \"*.example.com\"]`.";
    ForeignForm "foreign_form":
        "A path or host in a form that ext_authz requests never have, in another domain than that of `[authz]`.",
        "Write the form that the warning shows, or normalise the entry.";
    NotNormalised "not_normalised":
        "A rule on `path` or `host` in a domain that does not normalise it: `//login` and `/login?x` are other paths.",
        "Set `domains.NAME.normalise`.";
    UnknownEntry "unknown_entry":
        "An entry that requests may not have: neither `[authz]` nor the domain lists it.",
        "Correct the name, or list the entries that clients send in `domains.NAME.entries`.";
    SimilarEntry "similar_entry":
        "The name of an entry that differs from a known one by a dash, by case or by a letter.",
        "Correct the name, or list it in `domains.NAME.entries`.";
    UnusedEntry "unused_entry":
        "A normaliser, a name in `addresses` or a derived entry that no rule of the domain uses.",
        "Correct the name, or remove it.";
    AbsentKey "absent_key":
        "A key with an entry that the rule requires to be absent, so nothing is ever counted.",
        "Correct the `match`, or the key.";
    HeaderUnderscore "header_underscore":
        "An entry from a header with an underscore in its name, which nginx drops, and Envoy if it is so configured.",
        "Use a header with dashes, or configure the gateway to pass it.";
    UnmatchedTier "unmatched_tier":
        "A limiter's name with an entry and no `otherwise`: values without a limiter are refused.",
        "Set `otherwise`, or match only values that have a limiter.";
    TiersDiffer "tiers_differ":
        "Limiters of one template that differ in algorithm, window or store cannot share a counter.",
        "Give them one algorithm, window and store.";
    UnusedList "unused_list":
        "A list that no rule names.",
        "Match it, `{ list = \"NAME\" }`, or remove it.";
    UnusedTable "unused_table":
        "A table that no domain derives an entry from.",
        "Name it in `domains.NAME.derive`, or remove it.";
    AbsentPasses "absent_passes":
        "A rule that denies who is not in a list, and lets those pass who send no such entry.",
        "Write `[{ not = { list = \"NAME\" } }, { not = \"*\" }]`, or deny those without the entry in a rule of their own.";
    UnusedLimiter "unused_limiter":
        "A limiter that no rule applies.",
        "Apply it in a rule, remove it, or set `direct = true` if workers ask for it by name.";
    DirectApplied "direct_applied":
        "`direct = true` on a limiter that rules apply: workers ask for it as the rules do, and `direct` has no effect.",
        "Remove it, or give workers a limiter of their own.";
    QueuedWait "queued_wait":
        "`wait = true` on a limiter that is not a token_bucket alone, so that nobody is granted ahead.",
        "Remove it: `timeout` and `max_wait` alone let callers wait, in a queue of each instance.";
    LargeBurst "large_burst":
        "A `burst` with which the first second, or the first window, admits more than the rate says.",
        "Lower `burst`, or leave it out.";
    LongWindow "long_window":
        "A window of more than a year, or a lease of more than a day.",
        "Check the unit.";
    IgnoredKey "ignored_key":
        "A key that is accepted for files of rate-sync and has no effect.",
        "Remove it.";
    WeakSecret "weak_secret":
        "A secret or a token of fewer than 16 characters, which can be guessed.",
        "Choose a longer one.";
    ClearText "clear_text":
        "A port that other machines can reach without encryption.",
        "Listen on loopback or on a Unix socket; if nobody else can read that network, set `server.clear_text = \"accepted\"`.";
}
