//! The known name that an unknown one was probably meant to be.

/// Returns the name most similar to `written`, if it is similar enough for a suggestion.
pub(crate) fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    let distance = |name: &&str| strsim::damerau_levenshtein(&written, &name.to_lowercase());
    let nearest = names.into_iter().min_by_key(distance)?;
    let allowed = (nearest.chars().count() / 3).clamp(1, 4);
    (distance(&nearest) <= allowed).then_some(nearest)
}
