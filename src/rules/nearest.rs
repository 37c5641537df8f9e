//! The known name that an unknown one was probably meant to be.

/// Returns the name most similar to `written`, if it is similar enough for a suggestion.
pub(crate) fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    let distance = |name: &&str| strsim::damerau_levenshtein(&written, &name.to_lowercase());
    let nearest = names.into_iter().min_by_key(distance)?;
    let allowed = (nearest.chars().count() / 3).clamp(1, 4);
    (distance(&nearest) <= allowed).then_some(nearest)
}

/// Returns the name that differs from `written` only in case, dashes, dots and spaces, or else the most similar one of
/// those with at least `shortest` bytes: of two short names, one is nearly always similar to the other.
pub(crate) fn similar<'a>(
    written: &str,
    names: impl IntoIterator<Item = &'a str> + Clone,
    shortest: usize,
) -> Option<&'a str> {
    let plain = |name: &str| name.trim().to_lowercase().replace(['-', ' ', '.'], "_");
    let same = names.clone().into_iter().find(|name| plain(name) == plain(written));
    same.or_else(|| nearest(written, names.into_iter().filter(|name| name.len() >= shortest)))
}
