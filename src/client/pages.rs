//! Long lists are answered a page at a time; this asks on until there is enough.

use crate::exit::Failure;

/// Asked for at a time at most: as many as the daemon gives.
pub const PAGE: u64 = 1_000;

/// One page, or all that were read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Elements.
    pub count: u64,
    /// The place behind the last of them.
    pub after: Option<String>,
    /// Whether there is something behind that place.
    pub more: bool,
}

/// Reads pages from behind `after` until `limit` elements were read or there are no more. `page` is given a place and how many to
/// ask for.
pub fn each(
    after: Option<String>,
    limit: Option<u64>,
    mut page: impl FnMut(Option<&str>, u64) -> Result<Page, Failure>,
) -> Result<Page, Failure> {
    let mut read = Page { count: 0, after, more: true };
    while read.more && limit.is_none_or(|limit| read.count < limit) {
        let left = limit.map_or(PAGE, |limit| limit - read.count);
        let next = page(read.after.as_deref(), left.min(PAGE))?;
        // With a filter a page can be empty and still lead further; one that leads nowhere is the last.
        let leads_on = next.count > 0 || next.after != read.after;
        read = Page { count: read.count + next.count, more: next.more && leads_on, after: next.after.or(read.after) };
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(numbers: u64) -> impl FnMut(Option<&str>, u64) -> Result<Page, Failure> {
        move |after, limit| {
            let from: u64 = after.map_or(0, |place| place.parse().expect("made here"));
            let to = (from + limit).min(numbers);
            Ok(Page { count: to - from, after: Some(to.to_string()), more: to < numbers })
        }
    }

    #[test]
    fn pages_are_read_until_there_is_enough() {
        let all = each(None, None, of(2_500)).expect("no failure");
        assert_eq!((all.count, all.after.as_deref(), all.more), (2_500, Some("2500"), false));
        let some = each(Some("100".to_owned()), Some(1_500), of(2_500)).expect("no failure");
        assert_eq!((some.count, some.after.as_deref(), some.more), (1_500, Some("1600"), true));
        assert_eq!(each(None, None, of(0)).expect("no failure").count, 0);
    }

    #[test]
    fn a_page_that_leads_nowhere_is_the_last() {
        let mut asked = 0;
        let read = each(Some("here".to_owned()), None, |after, _| {
            asked += 1;
            assert!(asked < 10, "it asks for ever");
            Ok(Page { count: 0, after: after.map(str::to_owned), more: true })
        });
        assert_eq!(read.expect("no failure").count, 0);
    }
}
