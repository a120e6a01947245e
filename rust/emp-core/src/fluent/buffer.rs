//! Where a connection's bytes land: one contiguous piece of memory that follows what the connection needs.
//!
//! It begins small, grows with full reads and towards the end of a frame that is known to be longer, and is given back when asked for
//! nothing while empty: thousands of quiet connections cost little. All of it is always initialised.

/// The first size.
const LEAST_BYTES: usize = 16 << 10;
/// The size up to which full reads let it grow.
const READ_BYTES: usize = 512 << 10;

/// Memory with bytes that arrived and room behind them.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
    /// The room that a read should find.
    room: usize,
}

impl Buffer {
    /// The bytes that are there.
    pub fn filled(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// The room behind them.
    pub fn free(&mut self) -> &mut [u8] {
        &mut self.memory[self.end..]
    }

    /// Bytes of memory held.
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Makes room for a read: at least one byte, about `hint_bytes` for a connection that fills it, and up to `wanted_bytes` in all for
    /// what has begun to arrive. With a hint of 0 an empty buffer gives its memory back. Moves what is there; nobody may be writing.
    pub fn reserve(&mut self, hint_bytes: usize, wanted_bytes: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if hint_bytes == 0 {
                *self = Self::default();
                return;
            }
        }
        let pending = self.end - self.start;
        let room = self.room.clamp(1, hint_bytes.max(1)).max(LEAST_BYTES.min(hint_bytes));
        if self.memory.len() - self.end >= room {
            return;
        }
        let needed = (pending + room).max(wanted_bytes.min(pending.saturating_mul(4).max(READ_BYTES)));
        if needed > self.memory.len() {
            // In a fresh piece, so that only the bytes that are there are copied; half as large again for a long frame, or each read of it
            // would copy all that came before.
            let size = if pending > READ_BYTES { needed.max(pending + pending / 2) } else { needed };
            let mut memory = vec![0; size.next_multiple_of(4096)];
            memory[..pending].copy_from_slice(self.filled());
            self.memory = memory;
        } else {
            self.memory.copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, pending);
    }

    /// `len` bytes were written into the room.
    pub fn landed(&mut self, len: usize) {
        let free = self.memory.len() - self.end;
        let len = len.min(free);
        self.end += len;
        self.room = if len == free { (self.room.max(LEAST_BYTES) * 2).min(READ_BYTES) } else { self.room.max(len) };
    }

    /// The first `len` bytes are done with.
    pub fn consume(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
    }

    /// Appends bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        let pending = self.end - self.start;
        if self.memory.len() - self.end < bytes.len() {
            if self.memory.len() < pending + bytes.len() {
                let size = (pending + bytes.len()).max(pending * 2).max(LEAST_BYTES);
                let mut memory = vec![0; size.next_multiple_of(4096)];
                memory[..pending].copy_from_slice(self.filled());
                self.memory = memory;
            } else {
                self.memory.copy_within(self.start..self.end, 0);
            }
            (self.start, self.end) = (0, pending);
        }
        self.memory[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_connection_holds_little_and_gives_it_back() {
        let mut buffer = Buffer::default();
        buffer.reserve(65_536, 0);
        assert_eq!(buffer.capacity(), LEAST_BYTES);
        buffer.free()[..3].copy_from_slice(b"abc");
        buffer.landed(3);
        assert_eq!(buffer.filled(), b"abc");
        buffer.reserve(0, 0);
        assert_eq!(buffer.filled(), b"abc", "bytes that are there stay");
        buffer.consume(3);
        buffer.reserve(0, 0);
        assert_eq!(buffer.capacity(), 0);
    }

    #[test]
    fn full_reads_make_room_for_larger_ones_up_to_the_hint() {
        let mut buffer = Buffer::default();
        for _ in 0..10 {
            buffer.reserve(262_144, 0);
            let free = buffer.free().len();
            buffer.landed(free);
            buffer.consume(free);
        }
        buffer.reserve(262_144, 0);
        assert_eq!(buffer.free().len(), 262_144);
    }

    #[test]
    fn a_long_frame_is_copied_a_few_times_and_not_with_every_read() {
        let mut buffer = Buffer::default();
        let mut moves = 0;
        while buffer.filled().len() < 64 << 20 {
            let before = buffer.capacity();
            buffer.reserve(262_144, 8 << 20);
            moves += usize::from(buffer.capacity() != before);
            let free = buffer.free().len().min(262_144);
            buffer.landed(free);
        }
        assert!(moves < 32, "moved {moves} times");
        assert!(buffer.capacity() < 2 * (64 << 20));
    }

    #[test]
    fn room_is_made_for_a_frame_that_is_known_to_be_long_but_not_on_its_word_alone() {
        let mut buffer = Buffer::default();
        buffer.extend(&[1; 100]);
        buffer.reserve(65_536, 400_000);
        assert_eq!(buffer.free().len() + 100, 400_000usize.next_multiple_of(4096));
        let mut buffer = Buffer::default();
        buffer.extend(&[1; 100]);
        buffer.reserve(65_536, 4 << 30);
        assert!(buffer.capacity() <= READ_BYTES);
    }
}
