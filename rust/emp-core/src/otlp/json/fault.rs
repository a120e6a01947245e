//! What is the matter with a text, and the way to it.

use std::borrow::Cow;

/// What cannot be used, and where: either broken (the text cannot be followed) or wrong (it can: what is there is not what should be).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The text cannot be followed past here.
    pub broken: bool,
    /// The byte at which it was seen.
    pub offset: usize,
    /// What was seen there.
    pub detail: Cow<'static, str>,
    /// The fields on the way there, outermost first.
    pub path: String,
}

impl Fault {
    /// With an outer field put before its path.
    #[cold]
    pub fn under(mut self: Box<Self>, field: &str) -> Box<Self> {
        let separator = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{field}{separator}{}", self.path);
        self
    }

    /// With the place in a list put before its path.
    #[cold]
    pub fn at_index(self: Box<Self>, index: usize) -> Box<Self> {
        self.under(&format!("[{index}]"))
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() { write!(f, "JSON: {}", self.detail) } else { write!(f, "JSON: {}: {}", self.path, self.detail) }
    }
}

/// A result with the usual fault.
pub type Result<T> = std::result::Result<T, Box<Fault>>;
