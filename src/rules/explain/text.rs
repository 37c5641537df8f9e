//! The explanation as text.

use std::time::Duration;

use super::explanation::{
    ActionExplanation, ApplyExplanation, ExplainedEntry, Explanation, NotApplied, RuleExplanation,
};
use crate::descriptor::Descriptor;
use crate::limiter::{Algorithm, Limiter, Lost, Quota, Schedule};
use crate::rules::book::{Charge, Unmatched};
use crate::rules::compiled::Rules;

impl Rules {
    /// Explains as text which rules apply to a descriptor.
    pub fn explain_in_words(&self, domain: &str, descriptor: &Descriptor<'_>) -> String {
        let settings = self.by_name.get(domain).map(|&index| &self.domains[index]);
        let text = ExplanationText {
            domain,
            limiters: &self.limiters,
            unmatched: settings.map_or(Unmatched::default(), |settings| settings.unmatched),
            shadow: settings.map_or(self.shadow, |settings| settings.shadow),
            domains: self.domains_with_rules(),
        };
        text.whole(&self.explain(domain, descriptor))
    }
}

/// Maximum number of listed rules that do not nearly match.
const MAX_LISTED_RULES: usize = 20;

/// The context of an explanation's text.
struct ExplanationText<'a> {
    domain: &'a str,
    limiters: &'a [Limiter],
    unmatched: Unmatched,
    /// Whether the domain is in shadow.
    shadow: bool,
    /// The domains that have rules, by name.
    domains: Vec<&'a str>,
}

impl ExplanationText<'_> {
    fn whole(&self, explanation: &Explanation) -> String {
        let mut text = format!("domain {}\n", self.domain);
        for ExplainedEntry { entry, values, note } in &explanation.entries {
            let values: Vec<String> = values
                .iter()
                .map(|(requested, value)| match value == requested {
                    true => format!("{value:?}"),
                    false => format!("{value:?}, normalised from {requested:?}"),
                })
                .collect();
            text += &match (values.is_empty(), note.is_empty()) {
                (true, _) => format!("  {entry} is {note}\n"),
                (false, true) => format!("  {entry} = {}\n", values.join(" or ")),
                (false, false) => format!("  {entry} = {}: {note}\n", values.join(" or ")),
            };
        }
        if !explanation.unknown.is_empty() {
            text.push('\n');
        }
        for unknown in &explanation.unknown {
            text += &format!("{unknown}\n");
        }
        if !explanation.domain_known {
            let domains = if self.domains.is_empty() { "none".to_owned() } else { self.domains.join(", ") };
            text += &format!("\nthis domain has no rules; domains with rules: {domains}\n");
        }
        let (lacking, rules): (Vec<_>, Vec<_>) = explanation.rules.iter().partition(|rule| rule.lacking.is_some());
        let (matching, others): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.mismatches.is_empty());
        for rule in &lacking {
            text += &lacks(rule);
        }
        for rule in &matching {
            self.matching(&mut text, rule);
        }
        let near = |rule: &&&RuleExplanation| rule.mismatches.len() == 1 || rule.hits > 0;
        let nearly: Vec<_> = others.iter().filter(near).collect();
        for rule in &nearly {
            text += &format!("\nrule {} nearly matches\n", rule.rule);
            for miss in &rule.mismatches {
                text += &format!("  {}\n", miss.in_words(true));
            }
        }
        let far: Vec<_> = others.iter().filter(|rule| !near(rule)).collect();
        for rule in far.iter().take(MAX_LISTED_RULES) {
            let expected: Vec<String> =
                rule.mismatches.iter().map(|miss| format!("{} {}", miss.entry, miss.expected)).collect();
            text += &format!("\nrule {} does not match: expected {}\n", rule.rule, expected.join(", "));
        }
        match far.len().saturating_sub(MAX_LISTED_RULES) {
            0 => {}
            1 => text += "\n1 more rule of this domain does not match\n",
            more => text += &format!("\n{more} more rules of this domain do not match\n"),
        }
        let refusing = lacking.iter().find(|rule| !rule.shadow && !rule.unreached);
        let denied = |rule: &&&RuleExplanation| {
            !rule.unreached && !rule.shadow && matches!(rule.action, ActionExplanation::Deny)
        };
        let verdict = match (refusing, matching.iter().find(denied)) {
            (Some(rule), None) => {
                let entry = rule.lacking.as_deref().unwrap_or_default();
                format!("verdict: refused by rule {}, because {entry} is absent", rule.rule)
            }
            _ => self.verdict(&matching),
        };
        text += &format!("\n{verdict}\n");
        text
    }

    fn matching(&self, text: &mut String, rule: &RuleExplanation) {
        let how = match (rule.unreached, rule.shadow) {
            (true, _) => "would match, but an earlier rule ends the walk",
            (false, true) => "matches, in shadow: it counts and never denies",
            (false, false) => "matches",
        };
        *text += &format!("\nrule {} {how}\n", rule.rule);
        for (entry, expected) in &rule.normalised {
            *text += &format!("  {entry} passes {expected}\n");
        }
        for (entry, list, met) in &rule.lists {
            *text += &format!("  {entry} is {}in list {list}\n", if *met { "" } else { "not " });
        }
        if rule.unreached {
            return;
        }
        if let Some(entry) = &rule.repeated {
            *text += &match rule.shadow {
                true => format!("  would refuse, because it needs {entry}, but is in shadow: the walk continues\n"),
                false => format!("  refuses, because it needs {entry}: the request charges nothing\n"),
            };
            return;
        }
        match &rule.action {
            ActionExplanation::Allow if rule.shadow_only => {
                *text += "  would allow, but is in shadow: the walk continues\n";
            }
            ActionExplanation::Deny if rule.shadow => *text += "  would deny, but is in shadow: the walk continues\n",
            ActionExplanation::Allow => *text += "  allows: the walk ends, and the checks found before stay\n",
            ActionExplanation::Deny => *text += "  denies: the request is refused and charges nothing\n",
            ActionExplanation::Apply(applies) => applies.iter().for_each(|apply| self.apply(text, apply)),
        }
    }

    fn apply(&self, text: &mut String, apply: &ApplyExplanation) {
        *text += &match &apply.limiter {
            Some(limiter) if *limiter != apply.reference => format!("  {limiter} (from {})", apply.reference),
            _ => format!("  {}", apply.reference),
        };
        if let Some(not_applied) = &apply.not_applied {
            *text += &format!(": {not_applied}\n");
            if apply.counters.is_empty() {
                return;
            }
        }
        let key: Vec<String> = apply.key.iter().map(|(entry, value)| counted_as(entry, value.as_deref())).collect();
        match key.is_empty() {
            true => *text += ": one counter for all\n",
            false => *text += &format!(": one counter for {}\n", key.join(", ")),
        }
        let limiter = apply.limiter.as_ref().and_then(|name| self.limiters.iter().find(|known| known.name == *name));
        if let Some(limiter) = limiter {
            if let Some(quota) = &limiter.quota {
                *text += &format!("    {}\n", describe(quota));
            }
            if let Some(slots) = limiter.concurrency {
                let lease = duration(Duration::from_micros(slots.lease));
                *text += &format!("    concurrency: {} at a time, each for at most {lease}\n", slots.max);
            }
        }
        let of: Vec<String> = apply.of.iter().map(|(entry, value)| counted_as(entry, value.as_deref())).collect();
        let charges = if of.is_empty() { "charges 1".to_owned() } else { format!("remembers {}", of.join(", ")) };
        let when = match apply.charge {
            Charge::Admitted => "when the whole request is admitted",
            Charge::Own => "when this check passes, even if another refuses",
            Charge::Always => "regardless of the verdict",
        };
        let overdraw = if apply.overdraw { "; passes while one unit is left" } else { "" };
        *text += &format!("    {charges} {when}{overdraw}\n");
        if let Some(hold) = apply.hold {
            let lost = match hold.lost {
                Lost::Charge => "it stays charged if no lease corrects it",
                Lost::Release => "it is given back then if no lease corrects it",
            };
            *text += &format!("    held for {}; {lost}\n", duration(hold.length));
        }
        for (counter, _) in &apply.counters {
            *text += &format!("    counter {counter}\n");
        }
    }

    fn verdict(&self, matching: &[&RuleExplanation]) -> String {
        let reached = || matching.iter().filter(|rule| !rule.unreached);
        for rule in reached().filter(|rule| !rule.shadow) {
            if let Some(entry) = &rule.repeated {
                return format!("verdict: refused by rule {}, because {entry} is repeated", rule.rule);
            }
        }
        if let Some(rule) = reached().find(|rule| matches!(rule.action, ActionExplanation::Deny) && !rule.shadow) {
            return format!("verdict: refused by rule {}", rule.rule);
        }
        let refuses = |apply: &&ApplyExplanation| apply.not_applied.as_ref().is_some_and(NotApplied::refuses);
        for rule in reached().filter(|rule| !rule.shadow) {
            let ActionExplanation::Apply(applies) = &rule.action else { continue };
            if let Some(apply) = applies.iter().find(refuses) {
                return format!(
                    "verdict: refused by rule {}, because {} cannot be counted",
                    rule.rule, apply.reference
                );
            }
        }
        // A rule that is in shadow on its own leaves a descriptor unmatched.
        if reached().all(|rule| rule.shadow_only) {
            let none = match reached().next() {
                None => "no rule matches",
                Some(_) => "only rules in shadow match",
            };
            return match (self.unmatched, self.shadow) {
                (Unmatched::Allow, _) => format!("verdict: {none}, so it passes (unmatched = \"allow\")"),
                (Unmatched::Deny, true) => {
                    format!("verdict: {none}, but it passes, because the whole domain is in shadow")
                }
                (Unmatched::Deny, false) => {
                    format!("verdict: {none}, so it is refused (unmatched = \"deny\")")
                }
            };
        }
        let counters = |rule: &RuleExplanation| -> usize {
            match &rule.action {
                _ if rule.repeated.is_some() => 0,
                ActionExplanation::Apply(applies) => applies.iter().map(|apply| apply.counters.len()).sum(),
                ActionExplanation::Allow | ActionExplanation::Deny => 0,
            }
        };
        let in_shadow: usize = reached().filter(|rule| rule.shadow).map(|rule| counters(rule)).sum();
        let enforced: usize = reached().filter(|rule| !rule.shadow).map(|rule| counters(rule)).sum();
        match (enforced, in_shadow) {
            (0, 0) => "verdict: passes, nothing is counted".to_owned(),
            (0, _) => "verdict: passes, because everything that is counted is in shadow".to_owned(),
            (1, _) => "verdict: passes if its counter has room".to_owned(),
            (enforced, _) => format!("verdict: passes if all {enforced} counters have room"),
        }
    }
}

/// An entry with its value as it is counted; an entry that is missing counts as empty here.
fn counted_as(entry: &str, value: Option<&str>) -> String {
    format!("{entry}={}", value.unwrap_or_default())
}

/// What a rule does that names a derived entry which is absent.
fn lacks(rule: &RuleExplanation) -> String {
    let entry = rule.lacking.as_deref().unwrap_or_default();
    let effect = match (rule.unreached, rule.shadow) {
        (true, _) => "would refuse, but an earlier rule ends the walk",
        (false, true) => "would refuse, but is in shadow",
        (false, false) => "refuses",
    };
    format!("\nrule {} {effect}: it names {entry}, which is derived and absent\n", rule.rule)
}

fn describe(quota: &Quota) -> String {
    let (limit, window) = (quota.limit, duration(quota.window));
    match &quota.algorithm {
        Algorithm::TokenBucket { burst, .. } => {
            let burst = burst.unwrap_or(limit);
            format!("token_bucket: refills {limit} in {window}, holds at most {burst}")
        }
        Algorithm::SlidingWindow => format!("sliding_window: {limit} in any {window}"),
        Algorithm::Distinct { of } => {
            format!("distinct: {limit} different values of {} in any {window}", of.join(" + "))
        }
        Algorithm::SlidingCounter => format!("sliding_counter: about {limit} in any {window}"),
        Algorithm::FixedWindow(Schedule::Epoch) => format!("fixed_window: {limit} in each {window}"),
        Algorithm::FixedWindow(Schedule::FirstHit) => format!("fixed_window: {limit} in {window} from the first hit"),
        Algorithm::FixedWindow(Schedule::Calendar(calendar)) => {
            let zone = calendar.zone.iana_name().unwrap_or("UTC");
            format!("fixed_window: {limit} in each {} of {zone}", format!("{:?}", calendar.unit).to_lowercase())
        }
    }
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}
