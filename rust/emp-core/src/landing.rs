//! Where the bytes of a request's body land: one piece of memory for each body, that a few bodies after each other share.
//!
//! A piece from the [`Shelf`] is warm and as large as usual bodies are, so that these are neither moved nor copied before they are decoded.
//! The shelf's pieces are few: they, and not what peers say, bound what it holds. A body that finds none, or outgrows its piece, has
//! memory of its own, no more than it was granted. All of it is always initialised.

/// One body: bytes that arrived, and room for as many more as were granted.
#[derive(Debug, Default)]
pub struct Body {
    memory: Vec<u8>,
    filled: usize,
    granted: usize,
    shelved: bool,
}

impl Body {
    /// The bytes that are there.
    pub fn filled(&self) -> &[u8] {
        &self.memory[..self.filled]
    }

    /// The room behind them. Moves what is there where [`Body::must_move`] says so; nobody may be writing then.
    pub fn room(&mut self) -> &mut [u8] {
        if self.must_move() {
            self.memory.resize(self.granted, 0);
        }
        &mut self.memory[self.filled..self.granted]
    }

    /// More was granted than there is memory.
    pub fn must_move(&self) -> bool {
        self.granted > self.memory.len()
    }

    /// `len` bytes were written into the room. Returns whether there is none left.
    pub fn landed(&mut self, len: usize) -> bool {
        self.filled = (self.filled + len).min(self.granted.min(self.memory.len()));
        self.filled == self.granted
    }

    /// The body may be so many bytes longer.
    pub fn grant(&mut self, more: usize) {
        self.granted = self.granted.saturating_add(more);
    }
}

/// Pieces of memory that bodies take and give back.
#[derive(Debug)]
pub struct Shelf {
    spare: Vec<Vec<u8>>,
    piece_bytes: usize,
    most_pieces: usize,
    taken: usize,
}

impl Shelf {
    /// An empty shelf of at most `most_pieces`; they are made when they are first needed.
    pub fn new(piece_bytes: usize, most_pieces: usize) -> Self {
        Self { spare: Vec::new(), piece_bytes, most_pieces, taken: 0 }
    }

    /// A body that begins with `start` and was granted `granted` bytes in all, at least those of `start`.
    pub fn begin(&mut self, start: &[u8], granted: usize) -> Body {
        let granted = granted.max(start.len());
        let piece = if granted > self.piece_bytes {
            None
        } else if let Some(piece) = self.spare.pop() {
            Some(piece)
        } else {
            (self.taken < self.most_pieces).then(|| vec![0; self.piece_bytes])
        };
        let shelved = piece.is_some();
        self.taken += usize::from(shelved);
        let mut memory = piece.unwrap_or_else(|| vec![0; granted]);
        memory[..start.len()].copy_from_slice(start);
        Body { memory, filled: start.len(), granted, shelved }
    }

    /// The body is done with: its piece is there for another one.
    pub fn give_back(&mut self, body: Body) {
        if body.shelved {
            self.taken -= 1;
            if body.memory.len() == self.piece_bytes {
                self.spare.push(body.memory);
            }
        }
    }

    /// Pieces that lie on it.
    pub fn spare_pieces(&self) -> usize {
        self.spare.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(body: &mut Body, bytes: &[u8]) -> bool {
        body.room()[..bytes.len()].copy_from_slice(bytes);
        body.landed(bytes.len())
    }

    #[test]
    fn a_piece_that_was_given_back_is_the_next_bodys_and_shows_nothing_of_the_one_before() {
        let mut shelf = Shelf::new(100, 1);
        let mut first = shelf.begin(b"se", 6);
        assert!(write(&mut first, b"cret"));
        let at = first.memory.as_ptr();
        shelf.give_back(first);
        let second = shelf.begin(b"ab", 50);
        assert_eq!((second.memory.as_ptr(), second.filled()), (at, b"ab".as_slice()));
    }

    #[test]
    fn a_body_that_finds_no_piece_has_what_it_was_granted_and_no_more() {
        let mut shelf = Shelf::new(100, 1);
        let (_shelved, own, large) = (shelf.begin(b"", 10), shelf.begin(b"", 10), shelf.begin(b"", 101));
        assert_eq!((own.memory.len(), large.memory.len()), (10, 101));
        shelf.give_back(own);
        assert_eq!(shelf.spare_pieces(), 0, "memory of its own is no piece");
    }

    #[test]
    fn a_body_that_outgrows_its_piece_moves_and_another_piece_may_be_made() {
        let mut shelf = Shelf::new(4, 1);
        let mut body = shelf.begin(b"ab", 3);
        assert!(write(&mut body, b"c") && !body.must_move());
        body.grant(2);
        assert!(body.must_move());
        assert!(write(&mut body, b"de"));
        assert_eq!(body.filled(), b"abcde");
        shelf.give_back(body);
        assert_eq!(shelf.begin(b"", 1).memory.len(), 4);
    }

    #[test]
    fn more_than_there_is_room_for_cannot_have_landed() {
        let mut shelf = Shelf::new(100, 1);
        let mut body = shelf.begin(b"", 10);
        assert!(body.landed(50));
        assert_eq!(body.filled().len(), 10);
        body.grant(1000);
        assert!(!body.landed(1000), "nothing was written where no memory is");
        assert_eq!(body.filled().len(), 100);
    }

    proptest! {
        #[test]
        fn what_lands_is_what_is_read_whatever_was_granted_when(
            parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..60), 0..80_usize), 0..12), start in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut shelf = Shelf::new(64, 1);
            let mut body = shelf.begin(&start, start.len());
            let mut wanted = start;
            for (bytes, more) in parts {
                body.grant(more);
                let len = bytes.len().min(body.room().len());
                write(&mut body, &bytes[..len]);
                wanted.extend_from_slice(&bytes[..len]);
                prop_assert_eq!(body.filled(), wanted.as_slice());
            }
            shelf.give_back(body);
            prop_assert!(shelf.spare_pieces() <= 1);
        }
    }
}
