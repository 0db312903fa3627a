//! The status page: one self-contained HTML document that keeps itself current.
//!
//! The document carries the status of the moment as JSON, draws it, and fetches `/api/status` every two
//! seconds after that. Everything that came from outside (names, errors, events) reaches the page as text
//! nodes, never as HTML. Without a script it says where the JSON is.

use crate::model::Status;

const TEMPLATE: &str = include_str!("page.html");
/// Where the first status goes in.
const MARK: &str = "{{STATUS}}";

/// The document, with the status of the moment.
pub(crate) fn render(status: &Status) -> String {
    // Within <script type="application/json"> only "</" and "<!--" could end or change the block.
    let json = serde_json::to_string(status)
        .unwrap_or_else(|_| "null".to_owned())
        .replace('<', "\\u003c");
    TEMPLATE.replacen(MARK, &json, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_never_becomes_markup() {
        let (mut status, _) = crate::samples::busy();
        status.events[0].text = "</script><script>alert(1)</script><!--".to_owned();
        let page = render(&status);
        assert!(!page.contains("alert(1)</script>"));
        assert_eq!(
            page.matches("</script>").count(),
            TEMPLATE.matches("</script>").count()
        );
        let start = page.find("id=\"first\">").unwrap() + "id=\"first\">".len();
        let json = &page[start..start + page[start..].find("</script>").unwrap()];
        let back: Status = serde_json::from_str(json).unwrap();
        assert_eq!(back, status);
        for foreign in ["http://", "https://", "innerHTML", "document.write"] {
            assert!(!TEMPLATE.contains(foreign), "{foreign}");
        }
    }
}
