/// Returns the page with the relay's address.
pub(crate) fn page(relay: Option<&str>) -> String {
    include_str!("page.html").replacen("{{relay}}", &escape(relay.unwrap_or_default()), 1)
}

/// Returns the shop counter, built from `web/` and committed, so that serving it does not need
/// Node.
pub(crate) fn counter(network: &str) -> String {
    include_str!("../web/built/index.html").replacen("{{network}}", &escape(network), 1)
}

pub(crate) const COUNTER_SCRIPT: &str = include_str!("../web/built/counter.js");
pub(crate) const COUNTER_STYLE: &str = include_str!("../web/built/counter.css");

/// Escapes text for a quoted HTML attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}
