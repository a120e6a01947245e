//! The blocks that a tail sampler holds: those with a trace that is not decided yet, or with kept rows that have not been sent.

use std::collections::BTreeMap;

/// A block that has been taken and has not ended. Its payload stays with the delivery.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// In the log.
    pub offset: u64,
    /// Compressed.
    pub payload_bytes: usize,
    /// As its header says.
    pub records: u64,
    /// RED metrics have been made of it.
    pub red_done: bool,
    /// When it was taken.
    pub taken_ns: i64,
    /// Traces in it that are open.
    pub pending: u32,
    /// One link for each trace that was open when it was taken: the trace's link before.
    pub links: Vec<(u32, u32)>,
    /// Rows that were sent.
    pub kept_rows: u64,
    /// Rows of kept traces that cannot be read: dead letters.
    pub broken_rows: u64,
    /// The commit up to whose decisions its rows have been sent; 0: none.
    pub passed_seq: u64,
    /// Since when kept rows wait to be sent.
    pub due_since_ns: Option<i64>,
    /// It could not be read: it was given back, and stays only while traces are linked to it.
    pub unreadable: bool,
}

impl Held {
    /// Notes that kept rows wait to be sent.
    pub fn set_due(&mut self, time_ns: i64) {
        self.due_since_ns.get_or_insert(time_ns);
    }

    /// Whether its kept rows are to be sent now. While traces in it are open each pass costs an inflation, so the rows wait for another
    /// half of the time that the block had been here: a few passes at most, however its traces end.
    pub fn pass_is_due(&self, time_ns: i64, at_once: bool) -> bool {
        self.due_since_ns
            .is_some_and(|since| self.pending == 0 || at_once || time_ns.saturating_sub(since) >= since.saturating_sub(self.taken_ns) / 2)
    }
}

/// The held blocks, by slot for links and by offset for the order.
#[derive(Debug, Default)]
pub struct Blocks {
    slots: Vec<Held>,
    free: Vec<u32>,
    by_offset: BTreeMap<u64, u32>,
    /// Payload of those with open traces.
    pending_bytes: usize,
    link_bytes: usize,
}

impl Blocks {
    /// Takes a block in; it is pending until [`Self::settle`].
    pub fn add(&mut self, block: Held) -> u32 {
        let offset = block.offset;
        self.pending_bytes += block.payload_bytes;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Held::default());
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize] = block;
        self.by_offset.insert(offset, slot);
        slot
    }

    /// A block.
    #[inline]
    pub fn get(&mut self, slot: u32) -> &mut Held {
        &mut self.slots[slot as usize]
    }

    /// All traces of a block have been entered.
    pub fn settle(&mut self, slot: u32) {
        let block = &mut self.slots[slot as usize];
        block.links.shrink_to_fit();
        self.link_bytes += block.links.capacity() * size_of::<(u32, u32)>();
        if block.pending == 0 {
            self.pending_bytes -= block.payload_bytes;
        }
        if block.unreadable {
            self.by_offset.remove(&block.offset);
            if block.pending == 0 {
                self.release(slot);
            }
        }
    }

    /// A trace of a block has been decided. A link of the trace in the block, to the block before.
    pub fn decided(&mut self, (slot, at): (u32, u32), kept_at_ns: Option<i64>) -> (u32, u32) {
        let block = &mut self.slots[slot as usize];
        let before = block.links[at as usize];
        block.pending -= 1;
        if let Some(time_ns) = kept_at_ns {
            block.set_due(time_ns);
        }
        if block.pending == 0 {
            self.pending_bytes -= block.payload_bytes;
            if block.unreadable {
                self.release(slot);
            }
        }
        before
    }

    fn release(&mut self, slot: u32) -> Held {
        let block = std::mem::take(&mut self.slots[slot as usize]);
        self.link_bytes -= block.links.capacity() * size_of::<(u32, u32)>();
        self.free.push(slot);
        if self.free.len() == self.slots.len() {
            (self.slots, self.free) = (Vec::new(), Vec::new());
        }
        block
    }

    /// Ends a block without open traces.
    pub fn end(&mut self, slot: u32) -> Held {
        self.by_offset.remove(&self.slots[slot as usize].offset);
        self.release(slot)
    }

    /// Offsets and slots, in order.
    pub fn in_order(&self) -> impl Iterator<Item = (u64, u32)> {
        self.by_offset.iter().map(|(offset, slot)| (*offset, *slot))
    }

    /// The lowest offset that is held.
    pub fn first_offset(&self) -> Option<u64> {
        self.by_offset.keys().next().copied()
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.by_offset.len()
    }

    /// Payload of blocks that wait for a decision.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// What the links take, and the blocks' own records.
    pub fn memory_bytes(&self) -> usize {
        self.link_bytes + self.slots.capacity() * size_of::<Held>()
    }
}
