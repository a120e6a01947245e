//! The traces that a tail sampler knows, open and decided, in two slabs behind one map from trace id.
//!
//! ```text
//! index: trace id ─▶ slot ─┬▶ open     80 bytes a trace, in order of arrival (the oldest is decided first)
//!                          └▶ decided  56 bytes a trace, in order of use (the least used is forgotten first)
//! ```
//! Both orders are lists through the slots, so nothing is allocated for a trace but its place in a slab.

use hashbrown::HashTable;

use super::threshold::Threshold;

/// No slot.
pub const NONE: u32 = u32::MAX;
/// Marks a slot of the index that is one of decided traces.
const DECIDED: u32 = 1 << 31;

/// A 128-bit trace id.
pub type TraceId = [u8; 16];

/// What is remembered of a trace until it is decided.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Whose.
    pub id: TraceId,
    /// When its first span came, in the sampler's time.
    pub first_ns: i64,
    /// The earliest start of a span; `u64::MAX` while none is known.
    pub start_unix_nano: u64,
    /// The latest end.
    pub end_unix_nano: u64,
    /// The lowest `rv` that a span has; `u64::MAX` where none has one.
    pub randomness: u64,
    /// Block and place therein of the last link of its blocks; [`NONE`] without.
    pub last_link: (u32, u32),
    prev: u32,
    next: u32,
    /// So far.
    pub spans: u32,
    /// Which attribute policies matched.
    pub matched: u32,
    /// A span is an error.
    pub is_error: bool,
    /// Its root is there, which means that it has ended.
    pub has_root: bool,
}

/// What is remembered of a trace that has been decided.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    /// Whose.
    pub id: TraceId,
    /// None: dropped. `Some(None)`: kept, and no threshold can tell with which chance.
    pub kept: Option<Option<Threshold>>,
    /// The commit that it belongs to.
    pub seq: u64,
    /// Of the last block with rows of it.
    pub touched_offset: u64,
    /// When it was decided, in the sampler's time.
    pub time_ns: i64,
    prev: u32,
    next: u32,
}

/// Where a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Among the open ones.
    Open(u32),
    /// Among the decided ones.
    Decided(u32),
}

trait Linked: Copy {
    fn links(&mut self) -> (&mut u32, &mut u32);
}

impl Linked for Open {
    fn links(&mut self) -> (&mut u32, &mut u32) {
        (&mut self.prev, &mut self.next)
    }
}

impl Linked for Decided {
    fn links(&mut self) -> (&mut u32, &mut u32) {
        (&mut self.prev, &mut self.next)
    }
}

/// Places that are used again, in a list with two ends.
struct Slab<T> {
    items: Vec<T>,
    free: Vec<u32>,
    head: u32,
    tail: u32,
}

impl<T: Linked> Slab<T> {
    fn new() -> Self {
        Self { items: Vec::new(), free: Vec::new(), head: NONE, tail: NONE }
    }

    fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// Puts an item at the end.
    fn push(&mut self, item: T) -> u32 {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.items[slot as usize] = item;
                slot
            }
            None => {
                // Grown by an eighth rather than doubled: the summaries are most of the memory.
                if self.items.len() == self.items.capacity() {
                    self.items.reserve_exact(self.items.len() / 8 + 64);
                }
                self.items.push(item);
                self.items.len() as u32 - 1
            }
        };
        self.append(slot);
        slot
    }

    fn append(&mut self, slot: u32) {
        let tail = self.tail;
        let (prev, next) = self.items[slot as usize].links();
        (*prev, *next) = (tail, NONE);
        match tail {
            NONE => self.head = slot,
            tail => *self.items[tail as usize].links().1 = slot,
        }
        self.tail = slot;
    }

    fn unlink(&mut self, slot: u32) {
        let (prev, next) = self.items[slot as usize].links();
        let (prev, next) = (*prev, *next);
        match prev {
            NONE => self.head = next,
            prev => *self.items[prev as usize].links().1 = next,
        }
        match next {
            NONE => self.tail = prev,
            next => *self.items[next as usize].links().0 = prev,
        }
    }

    fn remove(&mut self, slot: u32) -> T {
        self.unlink(slot);
        self.free.push(slot);
        let item = self.items[slot as usize];
        if self.free.len() == self.items.len() {
            *self = Self::new(); // nothing is left: the memory of a peak goes back
        }
        item
    }

    fn memory_bytes(&self) -> usize {
        self.items.capacity() * size_of::<T>() + self.free.capacity() * size_of::<u32>()
    }
}

/// The traces of one sampler.
pub struct Traces {
    index: HashTable<u32>,
    hasher: ahash::RandomState,
    open: Slab<Open>,
    decided: Slab<Decided>,
}

impl Default for Traces {
    fn default() -> Self {
        // The ids come from outside: without a key in the hash a sender could choose some that all collide.
        Self { index: HashTable::new(), hasher: ahash::RandomState::new(), open: Slab::new(), decided: Slab::new() }
    }
}

impl Traces {
    fn id_of<'a>(open: &'a Slab<Open>, decided: &'a Slab<Decided>, entry: u32) -> &'a TraceId {
        if entry & DECIDED == 0 { &open.items[entry as usize].id } else { &decided.items[(entry ^ DECIDED) as usize].id }
    }

    /// Where a trace is; None: it is not known.
    #[inline]
    pub fn find(&self, id: &TraceId) -> Option<Found> {
        let entry = *self.index.find(self.hasher.hash_one(id), |entry| Self::id_of(&self.open, &self.decided, *entry) == id)?;
        Some(if entry & DECIDED == 0 { Found::Open(entry) } else { Found::Decided(entry ^ DECIDED) })
    }

    fn insert(&mut self, id: &TraceId, entry: u32) {
        let Self { index, hasher, open, decided } = self;
        index.insert_unique(hasher.hash_one(id), entry, |entry| hasher.hash_one(Self::id_of(open, decided, *entry)));
    }

    fn forget(&mut self, id: &TraceId, entry: u32) {
        if let Ok(found) = self.index.find_entry(self.hasher.hash_one(id), |other| *other == entry) {
            found.remove();
        }
        if self.index.is_empty() {
            self.index = HashTable::new();
        }
    }

    /// Begins a trace that is not known.
    pub fn begin(&mut self, id: TraceId, first_ns: i64) -> u32 {
        let slot = self.open.push(Open {
            id,
            first_ns,
            start_unix_nano: u64::MAX,
            end_unix_nano: 0,
            randomness: u64::MAX,
            last_link: (NONE, NONE),
            prev: NONE,
            next: NONE,
            spans: 0,
            matched: 0,
            is_error: false,
            has_root: false,
        });
        self.insert(&id, slot);
        slot
    }

    /// An open trace.
    #[inline]
    pub fn open(&mut self, slot: u32) -> &mut Open {
        &mut self.open.items[slot as usize]
    }

    /// The open trace that came first.
    pub fn oldest_open(&self) -> Option<u32> {
        (self.open.head != NONE).then_some(self.open.head)
    }

    /// How many are open.
    pub fn open_len(&self) -> usize {
        self.open.len()
    }

    /// Ends an open trace; its slot is free after it.
    pub fn end_open(&mut self, slot: u32) -> Open {
        let id = self.open.items[slot as usize].id;
        self.forget(&id, slot);
        self.open.remove(slot)
    }

    /// Remembers a decision about a trace that is not known.
    pub fn remember(&mut self, id: TraceId, kept: Option<Option<Threshold>>, seq: u64, touched_offset: u64, time_ns: i64) -> u32 {
        let slot = self.decided.push(Decided { id, kept, seq, touched_offset, time_ns, prev: NONE, next: NONE });
        self.insert(&id, slot | DECIDED);
        slot
    }

    /// A decision.
    #[inline]
    pub fn decided(&self, slot: u32) -> &Decided {
        &self.decided.items[slot as usize]
    }

    /// Notes that a block has rows of a decided trace.
    pub fn touch(&mut self, slot: u32, offset: u64) {
        if self.decided.items[slot as usize].touched_offset != offset {
            self.decided.items[slot as usize].touched_offset = offset;
            self.decided.unlink(slot);
            self.decided.append(slot);
        }
    }

    /// The decision that was not used for longest.
    pub fn least_used(&self) -> Option<u32> {
        (self.decided.head != NONE).then_some(self.decided.head)
    }

    /// How many decisions are remembered.
    pub fn decided_len(&self) -> usize {
        self.decided.len()
    }

    /// Forgets a decision.
    pub fn forget_decided(&mut self, slot: u32) -> Decided {
        let id = self.decided.items[slot as usize].id;
        self.forget(&id, slot | DECIDED);
        self.decided.remove(slot)
    }

    /// Bytes of a remembered decision, its part of the index included.
    pub const DECIDED_BYTES: usize = size_of::<Decided>() + 8;
    /// Bytes of an open trace, its part of the index included.
    pub const OPEN_BYTES: usize = size_of::<Open>() + 8;

    /// What all of it takes.
    pub fn memory_bytes(&self) -> usize {
        self.index.capacity() * 5 + self.open.memory_bytes() + self.decided.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, VecDeque};

    #[test]
    fn a_summary_stays_small() {
        assert!(size_of::<Open>() <= 88, "{}", size_of::<Open>());
        assert!(size_of::<Decided>() <= 72, "{}", size_of::<Decided>());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u8),
        Decide(u8),
        Touch(u8, u64),
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<u8>().prop_map(Step::Begin),
            2 => any::<u8>().prop_map(Step::Decide),
            1 => (any::<u8>(), 1..100u64).prop_map(|(id, offset)| Step::Touch(id, offset)),
            1 => Just(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn the_tables_agree_with_plain_maps_and_lists(steps in proptest::collection::vec(step(), 0..400)) {
            let mut traces = Traces::default();
            let (mut open, mut decided) = (VecDeque::<u8>::new(), VecDeque::<u8>::new());
            let mut offsets = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Begin(id) if !open.contains(&id) && !decided.contains(&id) => {
                        traces.begin([id; 16], 0);
                        open.push_back(id);
                    }
                    Step::Decide(id) if open.contains(&id) => {
                        let Some(Found::Open(slot)) = traces.find(&[id; 16]) else { panic!("open") };
                        prop_assert_eq!(traces.end_open(slot).id, [id; 16]);
                        traces.remember([id; 16], None, 0, 0, 0);
                        open.retain(|other| *other != id);
                        decided.push_back(id);
                        offsets.insert(id, 0);
                    }
                    Step::Touch(id, offset) if decided.contains(&id) => {
                        let Some(Found::Decided(slot)) = traces.find(&[id; 16]) else { panic!("decided") };
                        traces.touch(slot, offset);
                        if offsets.insert(id, offset) != Some(offset) {
                            decided.retain(|other| *other != id);
                            decided.push_back(id);
                        }
                    }
                    Step::Forget => {
                        if let Some(slot) = traces.least_used() {
                            prop_assert_eq!(Some(traces.forget_decided(slot).id), decided.pop_front().map(|id| [id; 16]));
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!((traces.open_len(), traces.decided_len()), (open.len(), decided.len()));
                prop_assert_eq!(traces.oldest_open().map(|slot| traces.open(slot).id), open.front().map(|id| [*id; 16]));
                for id in 0..=255u8 {
                    let found = match traces.find(&[id; 16]) {
                        Some(Found::Open(_)) => (true, false),
                        Some(Found::Decided(_)) => (false, true),
                        None => (false, false),
                    };
                    prop_assert_eq!(found, (open.contains(&id), decided.contains(&id)), "{}", id);
                }
            }
        }
    }
}
