//! Labels and jumps: classic BPF's conditional jumps reach 255 instructions, and programs do not
//! care.

use super::bpf::{Instruction, JUMP, LOAD_WORD, MAX_LENGTH, ProgramError, RETURN};

/// A place in the program, bound once, after every jump to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

#[derive(Debug)]
enum Item {
    Load(u32),
    Branch {
        test: u16,
        k: u32,
        then: Label,
        otherwise: Label,
    },
    Return(u32),
    Bind(Label),
}

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    items: Vec<Item>,
    labels: usize,
}

impl Assembler {
    pub(super) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    /// The label stands for the next instruction.
    pub(super) fn bind(&mut self, label: Label) {
        self.items.push(Item::Bind(label));
    }

    /// Loads the word at `offset` of `struct seccomp_data`.
    pub(super) fn load(&mut self, offset: u32) {
        self.items.push(Item::Load(offset));
    }

    /// Compares what was loaded (`test` is one of `bpf::TEST_*`) and jumps either way.
    pub(super) fn branch(&mut self, test: u16, k: u32, then: Label, otherwise: Label) {
        self.items.push(Item::Branch {
            test,
            k,
            then,
            otherwise,
        });
    }

    pub(super) fn ret(&mut self, value: u32) {
        self.items.push(Item::Return(value));
    }

    /// Lays the program out. A branch whose target is out of reach becomes three instructions:
    /// itself, over two far jumps. That moves others, so it is done until nothing changes; it ends,
    /// since a branch only ever grows.
    pub(super) fn finish(self) -> Result<Vec<Instruction>, ProgramError> {
        let mut far = vec![false; self.items.len()];
        loop {
            let places = self.places(&far)?;
            let mut changed = false;
            for (index, item) in self.items.iter().enumerate() {
                if far[index] {
                    continue;
                }
                if let Item::Branch {
                    then, otherwise, ..
                } = item
                {
                    let next = places.items[index] + 1;
                    let out_of_reach = |label: &Label| places.labels[label.0] - next > 0xff;
                    far[index] = out_of_reach(then) || out_of_reach(otherwise);
                    changed |= far[index];
                }
            }
            if !changed {
                return Ok(self.emit(&far, &places));
            }
        }
    }

    fn places(&self, far: &[bool]) -> Result<Places, ProgramError> {
        let mut places = Places {
            items: Vec::new(),
            labels: vec![0; self.labels],
        };
        let mut place = 0;
        for (item, far) in self.items.iter().zip(far) {
            places.items.push(place);
            place += match item {
                Item::Bind(label) => {
                    places.labels[label.0] = place;
                    0
                }
                Item::Branch { .. } if *far => 3,
                Item::Branch { .. } | Item::Load(_) | Item::Return(_) => 1,
            };
        }
        match place as usize > MAX_LENGTH {
            true => Err(ProgramError::TooLong {
                length: place as usize,
            }),
            false => Ok(places),
        }
    }

    fn emit(&self, far: &[bool], places: &Places) -> Vec<Instruction> {
        let mut program = Vec::new();
        for ((item, far), place) in self.items.iter().zip(far).zip(&places.items) {
            let distance = |label: &Label, from: u32| places.labels[label.0] - from;
            match item {
                Item::Load(offset) => program.push(Instruction::plain(LOAD_WORD, *offset)),
                Item::Return(value) => program.push(Instruction::plain(RETURN, *value)),
                Item::Bind(_) => {}
                Item::Branch {
                    test,
                    k,
                    then,
                    otherwise,
                } if *far => {
                    program.push(Instruction {
                        code: *test,
                        jump_true: 0,
                        jump_false: 1,
                        k: *k,
                    });
                    program.push(Instruction::plain(JUMP, distance(then, place + 2)));
                    program.push(Instruction::plain(JUMP, distance(otherwise, place + 3)));
                }
                Item::Branch {
                    test,
                    k,
                    then,
                    otherwise,
                } => {
                    let near = |label| u8::try_from(distance(label, place + 1));
                    let (Ok(jump_true), Ok(jump_false)) = (near(then), near(otherwise)) else {
                        unreachable!("finish() made every branch out of reach a far one");
                    };
                    program.push(Instruction {
                        code: *test,
                        jump_true,
                        jump_false,
                        k: *k,
                    });
                }
            }
        }
        program
    }
}

struct Places {
    items: Vec<u32>,
    labels: Vec<u32>,
}
