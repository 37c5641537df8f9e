//! Whether one test covers another: each value that passes the one passes the other too.

use super::Matcher;

impl Matcher {
    /// Whether every single value that passes `other`, or its absence, passes this test too. `false` also where that
    /// is not known.
    ///
    /// Both tests have their literals in the form of the entry's values.
    pub(crate) fn covers(&self, other: &Matcher) -> bool {
        if self == other {
            return true;
        }
        match (self, other) {
            // A list is data that changes: only the list itself covers it.
            (Matcher::List(_), Matcher::Exact(_)) => false,
            (_, Matcher::AnyOf(any)) => any.iter().all(|other| self.covers(other)),
            (Matcher::AnyOf(any), _) => any.iter().any(|one| one.covers(other)),
            (Matcher::Present, _) => !other.matches_absent(),
            (_, Matcher::Exact(value)) => self.matches(value),
            (Matcher::Pattern(pattern), Matcher::Pattern(other)) => pattern.covers(other),
            (Matcher::Cidr(block), Matcher::Cidr(other)) => block.contains(other),
            // The opposite of any value asks for absence, and no value passes it.
            (Matcher::Not(not), Matcher::Not(other)) => {
                !self.matches_absent() && !Matcher::Not(other.clone()).matches_absent() && other.covers(not)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests over a small alphabet, so that many cover others.
    fn tests() -> Vec<Matcher> {
        let texts = ["*", "", "a", "b", "ab", "aba", "a*", "*a", "ab*", "*ba", "a*a", "aba*aba", "a*b*a", "10.0.0.0/8"];
        let texts = texts.into_iter().chain(["10.1.0.0/16", "10.1.2.3", "::/0"]);
        let mut tests: Vec<Matcher> = texts.map(Matcher::parse).collect();
        let lists = [vec![0, 2], vec![2, 3], vec![6, 13], vec![2, 3, 4], vec![15, 14]];
        tests.extend(lists.map(|list| Matcher::AnyOf(list.iter().map(|index| tests[*index].clone()).collect())));
        let opposites: Vec<Matcher> = tests.iter().map(|test| Matcher::Not(Box::new(test.clone()))).collect();
        tests.extend(opposites);
        let mixed = Matcher::AnyOf(vec![tests[2].clone(), Matcher::Not(Box::new(Matcher::Present))]);
        tests.extend([Matcher::Not(Box::new(mixed.clone())), mixed]);
        tests
    }

    #[test]
    fn what_passes_a_covered_test_passes_the_covering_one() {
        let values = [
            "", "a", "b", "aa", "ab", "ba", "aba", "abab", "ababa", "abaaba", "abba", "c", "10.1.2.3", "10.9.9.9",
            "11.0.0.1",
        ];
        let tests = tests();
        let mut found = 0;
        for (covering, covered) in tests.iter().flat_map(|a| tests.iter().map(move |b| (a, b))) {
            if !covering.covers(covered) {
                continue;
            }
            found += 1;
            for value in values.iter().filter(|value| covered.matches(value)) {
                assert!(covering.matches(value), "{covering} covers {covered}, but not {value:?}");
            }
            assert!(
                !covered.matches_absent() || covering.matches_absent(),
                "{covering} covers {covered}, but not absence"
            );
        }
        assert!(found > 150, "only {found} pairs");
    }

    #[test]
    fn usual_tests_cover_each_other() {
        let cases = [
            ("*", "/login", true),
            ("/api/*", "/api/v1/*", true),
            ("/api/*", "/api/v1", true),
            ("*.example.com", "a.example.com", true),
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("/api/v1/*", "/api/*", false),
            ("/login", "*", false),
            ("10.1.0.0/16", "10.0.0.0/8", false),
        ];
        for (covering, covered, expected) in cases {
            let (covering, covered) = (Matcher::parse(covering), Matcher::parse(covered));
            assert_eq!(covering.covers(&covered), expected, "{covering} and {covered}");
            let not = |matcher| Matcher::Not(Box::new(matcher));
            if covering != Matcher::Present && covered != Matcher::Present {
                assert_eq!(not(covered.clone()).covers(&not(covering.clone())), expected, "{covering} and {covered}");
            }
        }
        let list = |texts: &[&str]| Matcher::AnyOf(texts.iter().map(|text| Matcher::parse(text)).collect());
        assert!(list(&["GET", "POST"]).covers(&list(&["POST"])));
        assert!(!list(&["POST"]).covers(&list(&["GET", "POST"])));
        let not = Matcher::Not(Box::new(Matcher::parse("/status")));
        assert!(not.covers(&Matcher::parse("/login")) && !not.covers(&Matcher::parse("/status")));
    }
}
