use proptest::prelude::*;

use super::{Patterns, find_all, names};

const PIECES: [&str; 62] = [
    "password",
    "api_key",
    "apiKey",
    "api-key",
    "API.KEY",
    "id",
    "authorization",
    "Set-Cookie",
    "--",
    "--my-",
    "=",
    ":",
    "=>",
    "%3d",
    "\\\"",
    "\"",
    "'",
    " ",
    "\t",
    "\n",
    "hunter2",
    "x",
    "Bearer",
    "basic",
    "abcdefghijklmnop",
    "0123456789",
    "AKIA",
    "ASIA",
    "IOSFODNN7EXAMPLE",
    "eyJ",
    "eyJhbGci",
    ".",
    "-----BEGIN ",
    "PRIVATE KEY-----",
    "RSA ",
    "https://",
    "http://",
    "redis://",
    "user",
    ":p",
    "@",
    "host",
    "/",
    "o1.example",
    "4111111111111111",
    "4111 1111 ",
    "1111 1111",
    "sntrys_",
    "gho_",
    "github_pat_",
    "sk-",
    "AIza",
    "xoxb-",
    "abcdefABCDEF0123456789abcdef0123",
    "-",
    "_",
    "\\",
    ";",
    "bearer ",
    "&",
    "\0",
    "\u{e4}",
];

proptest! {
    /// Clues save time only: nothing that a pattern finds may be missed without one, in a part or in the whole.
    #[test]
    fn what_a_pattern_finds_has_a_clue(pieces in proptest::collection::vec(0..PIECES.len(), 0..14), around in "[a-z:=@ ]{0,40}") {
        let keys = ["password", "api_key", "id"].map(str::to_owned);
        let patterns = Patterns::new(&names().map(str::to_owned).collect::<Vec<_>>(), &[], &keys).unwrap();
        let text: String = pieces.iter().map(|piece| PIECES[*piece]).collect();
        let clues = patterns.clues.patterns(text.as_bytes());
        let whole = format!("{around}\u{1}{text}\u{2}{around}");
        for (index, pattern) in patterns.text.iter().enumerate() {
            let mut found = Vec::new();
            find_all(pattern, text.as_bytes(), &mut found);
            if !found.is_empty() {
                prop_assert!(clues & 1 << index != 0, "pattern {} of {:?}", index, text);
                prop_assert!(patterns.clues.patterns(whole.as_bytes()) & 1 << index != 0, "pattern {} within {:?}", index, whole);
                let mut marks = [false; 3];
                let (start, end) = ((around.len() + 1) as u32, (around.len() + 1 + text.len()) as u32);
                patterns.clues.mark(whole.as_bytes(), &[start, end, whole.len() as u32], &mut marks);
                prop_assert!(marks[1], "the part of {:?}", whole);
            }
        }
    }
}
