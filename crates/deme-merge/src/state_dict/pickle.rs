//! Python's pickle as `torch.save` uses it, read without executing anything.
//!
//! A pickle is a program for a small stack machine, and one of its instructions calls any Python function
//! the file names. This machine builds plain containers and descriptions of tensors; the few functions a
//! state dict needs are known by name ([`Global`]), every other name is refused. Tensors are described,
//! not read: their bytes lie outside of the pickle (see `torch_file`).
//!
//! Values live in one arena and refer to each other by number, so that neither cycles nor deep nesting in
//! a hostile file can leak memory or overflow the stack.

use std::collections::BTreeMap;

use safetensors::Dtype;

/// The number of a value in [`Pickle::values`].
pub(super) type Id = usize;

/// A value of the pickled program.
#[derive(Clone, Debug)]
pub(super) enum PickleValue {
    None,
    Bool,
    Int(i128),
    Float,
    Text(String),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Set,
    Global(Global),
    Storage(StorageRef),
    Tensor(TensorRef),
}

impl PickleValue {
    /// What it is, in the words of Python.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "bool",
            Self::Int(_) => "int",
            Self::Float => "float",
            Self::Text(_) => "str",
            Self::Bytes => "bytes",
            Self::Tuple(_) => "tuple",
            Self::List(_) => "list",
            Self::Dict(_) => "dict",
            Self::Set => "set",
            Self::Global(_) => "class",
            Self::Storage(_) => "storage",
            Self::Tensor(_) => "tensor",
        }
    }
}

/// The functions and classes a state dict may refer to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    Size,
    Set,
    StorageType(Dtype),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("builtins" | "__builtin__", "set" | "frozenset") => Self::Set,
            ("torch", storage) => Self::StorageType(match storage {
                "DoubleStorage" => Dtype::F64,
                "FloatStorage" => Dtype::F32,
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                "ShortStorage" => Dtype::I16,
                "CharStorage" => Dtype::I8,
                "ByteStorage" => Dtype::U8,
                "BoolStorage" => Dtype::BOOL,
                "ComplexFloatStorage" => Dtype::C64,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// A flat piece of memory outside of the pickle. Counts are in elements.
#[derive(Clone, Debug)]
pub(super) struct StorageRef {
    pub(super) key: String,
    pub(super) dtype: Dtype,
    pub(super) numel: usize,
    /// Where this storage begins in the one called `key` (only files of PyTorch 0.x have views).
    pub(super) view_offset: usize,
}

/// A view of a storage. Offset and strides are in elements.
#[derive(Clone, Debug)]
pub(super) struct TensorRef {
    pub(super) storage: StorageRef,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

/// Why a pickle was not read.
#[derive(Debug)]
pub(super) enum PickleError {
    /// It refers to a function or class that is not on the list.
    Refused(String),
    /// It is damaged, or uses what `torch.save` never uses.
    Damaged(String),
}

fn damaged<T>(reason: impl Into<String>) -> Result<T, PickleError> {
    Err(PickleError::Damaged(reason.into()))
}

/// What a pickle builds.
pub(super) struct Pickle {
    pub(super) values: Vec<PickleValue>,
    pub(super) root: Id,
    /// How many bytes it took; legacy files hold several pickles in a row.
    pub(super) length: usize,
}

/// Runs the pickle at the start of `bytes`.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle, PickleError> {
    let mut machine = Machine {
        bytes,
        position: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
    };
    let root = machine.run()?;
    Ok(Pickle { values: machine.values, root, length: machine.position })
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    values: Vec<PickleValue>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: BTreeMap<usize, Id>,
}

impl<'a> Machine<'a> {
    /// Executes instructions until STOP; the names are those of Python's `pickletools`.
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let at = self.position;
            match self.byte()? {
                0x80 => self.protocol()?,                            // PROTO
                0x95 => drop(self.take(8)?), // FRAME: only a hint for buffering
                b'.' => return self.pop(),   // STOP
                b'(' => self.marks.push(self.stack.len()), // MARK
                b'0' => drop(self.pop()?),   // POP
                b'1' => drop(self.pop_to_mark()?), // POP_MARK
                b'2' => self.stack.push(self.top()?), // DUP
                b'N' => self.push(PickleValue::None), // NONE
                0x88 | 0x89 => self.push(PickleValue::Bool), // NEWTRUE, NEWFALSE
                b'I' | b'L' => self.decimal()?, // INT, LONG
                b'K' => self.int::<1>(|b| b[0].into())?, // BININT1
                b'M' => self.int(|b| u16::from_le_bytes(b).into())?, // BININT2
                b'J' => self.int(|b| i32::from_le_bytes(b).into())?, // BININT
                0x8a => self.long::<1>()?,   // LONG1
                0x8b => self.long::<4>()?,   // LONG4
                b'F' => {
                    self.line()?; // FLOAT
                    self.push(PickleValue::Float);
                }
                b'G' => {
                    self.take(8)?; // BINFLOAT
                    self.push(PickleValue::Float);
                }
                b'S' => self.quoted()?, // STRING
                b'V' => {
                    let text = self.line()?.to_owned(); // UNICODE
                    self.push(PickleValue::Text(text));
                }
                b'U' | 0x8c => self.text::<1>()?, // SHORT_BINSTRING, SHORT_BINUNICODE
                b'T' | b'X' => self.text::<4>()?, // BINSTRING, BINUNICODE
                0x8d => self.text::<8>()?,        // BINUNICODE8
                b'C' => self.binary::<1>()?,      // SHORT_BINBYTES
                b'B' => self.binary::<4>()?,      // BINBYTES
                0x8e | 0x96 => self.binary::<8>()?, // BINBYTES8, BYTEARRAY8
                b')' => self.push(PickleValue::Tuple(Vec::new())), // EMPTY_TUPLE
                0x85 => self.tuple(1)?,           // TUPLE1
                0x86 => self.tuple(2)?,           // TUPLE2
                0x87 => self.tuple(3)?,           // TUPLE3
                b't' => {
                    let items = self.pop_to_mark()?; // TUPLE
                    self.push(PickleValue::Tuple(items));
                }
                b']' => self.push(PickleValue::List(Vec::new())), // EMPTY_LIST
                b'l' => {
                    let items = self.pop_to_mark()?; // LIST
                    self.push(PickleValue::List(items));
                }
                b'a' => {
                    let item = self.pop()?; // APPEND
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?; // APPENDS
                    self.append(items)?;
                }
                b'}' => self.push(PickleValue::Dict(Vec::new())), // EMPTY_DICT
                b'd' => {
                    let items = self.pop_to_mark()?; // DICT
                    self.push(PickleValue::Dict(Vec::new()));
                    self.set_items(&items)?;
                }
                b's' => {
                    let value = self.pop()?; // SETITEM
                    let key = self.pop()?;
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?; // SETITEMS
                    self.set_items(&items)?;
                }
                0x8f => self.push(PickleValue::Set), // EMPTY_SET
                0x90 => drop(self.pop_to_mark()?),   // ADDITEMS: members of sets are never needed
                0x91 => {
                    self.pop_to_mark()?; // FROZENSET
                    self.push(PickleValue::Set);
                }
                b'p' | b'q' | b'r' | 0x94 => self.put(at)?, // PUT, BINPUT, LONG_BINPUT, MEMOIZE
                b'g' | b'h' | b'j' => self.get(at)?,        // GET, BINGET, LONG_BINGET
                b'c' => {
                    let module = self.line()?; // GLOBAL
                    let name = self.line()?;
                    self.global(module, name)?;
                }
                0x93 => self.stack_global()?, // STACK_GLOBAL
                b'i' => {
                    let module = self.line()?; // INST: a call, by name
                    let name = self.line()?;
                    return Err(PickleError::Refused(format!("{module}.{name}")));
                }
                b'R' | 0x81 => self.call()?, // REDUCE, NEWOBJ
                b'b' => self.build()?,       // BUILD
                b'Q' => self.storage()?,     // BINPERSID
                opcode => {
                    return damaged(format!(
                        "pickle instruction 0x{opcode:02x} at byte {at} is none that torch.save writes"
                    ));
                }
            }
        }
    }

    // --- reading the program ---

    fn take(&mut self, count: usize) -> Result<&'a [u8], PickleError> {
        let bytes = self.bytes;
        let taken = self.position.checked_add(count).and_then(|end| bytes.get(self.position..end));
        match taken {
            Some(taken) => {
                self.position += count;
                Ok(taken)
            }
            None => damaged("its pickle ends in the middle of an instruction"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("take returns as many bytes as asked"))
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.array::<1>()?[0])
    }

    /// An unsigned little-endian number of N bytes.
    fn unsigned<const N: usize>(&mut self) -> Result<usize, PickleError> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>()?);
        match usize::try_from(u64::from_le_bytes(wide)) {
            Ok(number) => Ok(number),
            Err(_) => damaged("its pickle holds a length beyond this machine's memory"),
        }
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.position..];
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return damaged("its pickle ends in the middle of a line");
        };
        let line = utf8(&rest[..length])?;
        self.position += length + 1;
        Ok(line)
    }

    fn protocol(&mut self) -> Result<(), PickleError> {
        match self.byte()? {
            0..=5 => Ok(()),
            version => damaged(format!("pickle protocol {version} is unknown (0 to 5 are known)")),
        }
    }

    // --- the stack ---

    fn push(&mut self, value: PickleValue) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn top(&self) -> Result<Id, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.get(floor..) {
            Some([.., top]) => Ok(*top),
            _ => damaged("its pickle takes from an empty stack"),
        }
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => damaged("its pickle has no mark where one is needed"),
        }
    }

    fn put(&mut self, at: usize) -> Result<(), PickleError> {
        let slot = match self.bytes[at] {
            b'p' => self.slot_number()?,
            b'q' => self.unsigned::<1>()?,
            b'r' => self.unsigned::<4>()?,
            _ => self.memo.len(),
        };
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, at: usize) -> Result<(), PickleError> {
        let slot = match self.bytes[at] {
            b'g' => self.slot_number()?,
            b'h' => self.unsigned::<1>()?,
            _ => self.unsigned::<4>()?,
        };
        match self.memo.get(&slot) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => damaged(format!("its pickle uses value {slot} before it is made")),
        }
    }

    fn slot_number(&mut self) -> Result<usize, PickleError> {
        let line = self.line()?;
        line.parse().or_else(|_| damaged(format!("`{line}` is no number of a value")))
    }

    // --- plain values ---

    fn int<const N: usize>(&mut self, number: impl Fn([u8; N]) -> i128) -> Result<(), PickleError> {
        let number = number(self.array()?);
        self.push(PickleValue::Int(number));
        Ok(())
    }

    /// INT and LONG: decimal digits; INT also spells truth values as 00 and 01, LONG ends in L.
    fn decimal(&mut self) -> Result<(), PickleError> {
        let line = self.line()?;
        if line == "00" || line == "01" {
            self.push(PickleValue::Bool);
            return Ok(());
        }
        match line.trim_end_matches('L').parse() {
            Ok(number) => {
                self.push(PickleValue::Int(number));
                Ok(())
            }
            Err(_) => damaged(format!("`{line}` is no integer of at most 128 bits")),
        }
    }

    /// LONG1 and LONG4: little-endian two's complement of any length.
    fn long<const N: usize>(&mut self) -> Result<(), PickleError> {
        let length = self.unsigned::<N>()?;
        let bytes = self.take(length)?;
        if length > 16 {
            return damaged(format!("its pickle holds an integer of {length} bytes"));
        }
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = if negative { [0xff; 16] } else { [0; 16] };
        wide[..length].copy_from_slice(bytes);
        self.push(PickleValue::Int(i128::from_le_bytes(wide)));
        Ok(())
    }

    fn text<const N: usize>(&mut self) -> Result<(), PickleError> {
        let length = self.unsigned::<N>()?;
        let text = utf8(self.take(length)?)?.to_owned();
        self.push(PickleValue::Text(text));
        Ok(())
    }

    /// STRING: Python 2's quoted text. Names with escapes do not occur in state dicts.
    fn quoted(&mut self) -> Result<(), PickleError> {
        let line = self.line()?;
        let inner =
            ['\'', '"'].iter().find_map(|&quote| line.strip_prefix(quote)?.strip_suffix(quote));
        match inner {
            Some(text) if !text.contains('\\') => {
                self.push(PickleValue::Text(text.to_owned()));
                Ok(())
            }
            _ => damaged(format!("`{line}` is no plain quoted text")),
        }
    }

    fn binary<const N: usize>(&mut self) -> Result<(), PickleError> {
        let length = self.unsigned::<N>()?;
        self.take(length)?;
        self.push(PickleValue::Bytes);
        Ok(())
    }

    // --- containers ---

    fn tuple(&mut self, count: usize) -> Result<(), PickleError> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(PickleValue::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        let list = self.top()?;
        match &mut self.values[list] {
            PickleValue::List(list) => {
                list.extend(items);
                Ok(())
            }
            other => damaged(format!("its pickle appends to a {}", other.kind())),
        }
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values[dict] {
            PickleValue::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            PickleValue::Dict(_) => damaged("its pickle holds a key without a value"),
            other => damaged(format!("its pickle sets items of a {}", other.kind())),
        }
    }

    // --- names and calls ---

    fn global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        match Global::named(module, name) {
            Some(global) => {
                self.push(PickleValue::Global(global));
                Ok(())
            }
            None => Err(PickleError::Refused(format!("{module}.{name}"))),
        }
    }

    fn stack_global(&mut self) -> Result<(), PickleError> {
        let name = self.pop()?;
        let module = self.pop()?;
        match (&self.values[module], &self.values[name]) {
            (PickleValue::Text(module), PickleValue::Text(name)) => {
                let (module, name) = (module.clone(), name.clone());
                self.global(&module, &name)
            }
            _ => damaged("its pickle names a function by something else than text"),
        }
    }

    /// REDUCE: calls a function with a tuple of arguments.
    fn call(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let PickleValue::Global(function) = self.values[function] else {
            let kind = self.values[function].kind();
            return damaged(format!("its pickle calls a {kind}"));
        };
        let arguments = self.items(arguments)?.to_vec();
        let result = match (function, &arguments[..]) {
            (Global::OrderedDict, []) => PickleValue::Dict(Vec::new()),
            (Global::OrderedDict, [pairs]) => PickleValue::Dict(self.pairs(*pairs)?),
            (Global::RebuildTensor, [storage, offset, shape, stride])
            | (Global::RebuildTensorV2, [storage, offset, shape, stride, _, _]) => {
                PickleValue::Tensor(self.tensor(*storage, *offset, *shape, *stride)?)
            }
            (Global::RebuildTensorV2, [storage, offset, shape, stride, _, _, flags]) => {
                match &self.values[*flags] {
                    PickleValue::None => {}
                    PickleValue::Dict(flags) if flags.is_empty() => {}
                    _ => {
                        return damaged(
                            "it holds a lazily conjugated or negated tensor; call .resolve_conj() \
                             and .resolve_neg() before saving",
                        );
                    }
                }
                PickleValue::Tensor(self.tensor(*storage, *offset, *shape, *stride)?)
            }
            (Global::RebuildParameter, [data, _, _]) => match &self.values[*data] {
                PickleValue::Tensor(tensor) => PickleValue::Tensor(tensor.clone()),
                other => return damaged(format!("a parameter is made of a {}", other.kind())),
            },
            (Global::Size, [sizes]) => PickleValue::Tuple(self.items(*sizes)?.to_vec()),
            (Global::Set, [] | [_]) => PickleValue::Set,
            (function, arguments) => {
                return damaged(format!(
                    "{function:?} cannot be called with {} arguments",
                    arguments.len()
                ));
            }
        };
        self.push(result);
        Ok(())
    }

    /// BUILD: sets attributes. The only case is `state_dict()._metadata`, which nothing here needs.
    fn build(&mut self) -> Result<(), PickleError> {
        self.pop()?;
        let object = self.top()?;
        match &self.values[object] {
            PickleValue::Dict(_) => Ok(()),
            other => damaged(format!("its pickle sets attributes of a {}", other.kind())),
        }
    }

    /// BINPERSID: ('storage', type, key, device, numel), in legacy files followed by None or
    /// (view key, offset, numel of the view).
    fn storage(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let items = self.items(id)?;
        let (tag, class, key, numel, view) = match *items {
            [tag, class, key, _, numel] => (tag, class, key, numel, None),
            [tag, class, key, _, numel, view] => (tag, class, key, numel, Some(view)),
            _ => return damaged("its pickle refers to something that is no storage"),
        };
        let (PickleValue::Text(tag), PickleValue::Global(Global::StorageType(dtype)), key) =
            (&self.values[tag], &self.values[class], &self.values[key])
        else {
            return damaged("its pickle refers to something that is no storage");
        };
        if tag != "storage" {
            return damaged(format!("its pickle refers to a `{tag}`, expected a storage"));
        }
        let key = match key {
            PickleValue::Text(key) => key.clone(),
            PickleValue::Int(key) => key.to_string(),
            other => return damaged(format!("the key of a storage is a {}", other.kind())),
        };
        let mut storage =
            StorageRef { key, dtype: *dtype, numel: self.size(numel)?, view_offset: 0 };
        if let Some(view) = view
            && let PickleValue::Tuple(view) = &self.values[view]
        {
            let [_, offset, numel] = view[..] else {
                return damaged("its pickle refers to a view that is none");
            };
            storage.view_offset = self.size(offset)?;
            let view_numel = self.size(numel)?;
            if storage.view_offset.saturating_add(view_numel) > storage.numel {
                return damaged("a view is larger than its storage");
            }
        }
        self.push(PickleValue::Storage(storage));
        Ok(())
    }

    fn tensor(
        &self,
        storage: Id,
        offset: Id,
        shape: Id,
        stride: Id,
    ) -> Result<TensorRef, PickleError> {
        let PickleValue::Storage(storage) = &self.values[storage] else {
            let kind = self.values[storage].kind();
            return damaged(format!("a tensor is made of a {kind}, expected a storage"));
        };
        let sizes = |id| -> Result<Vec<usize>, PickleError> {
            self.items(id)?.iter().map(|&id| self.size(id)).collect()
        };
        let (shape, stride) = (sizes(shape)?, sizes(stride)?);
        if shape.len() != stride.len() {
            return damaged(format!("a tensor of shape {shape:?} has strides {stride:?}"));
        }
        Ok(TensorRef { storage: storage.clone(), offset: self.size(offset)?, shape, stride })
    }

    fn items(&self, id: Id) -> Result<&[Id], PickleError> {
        match &self.values[id] {
            PickleValue::Tuple(items) | PickleValue::List(items) => Ok(items),
            other => damaged(format!("a {} stands where a tuple belongs", other.kind())),
        }
    }

    fn pairs(&self, id: Id) -> Result<Vec<(Id, Id)>, PickleError> {
        let pair = |&id: &Id| match *self.items(id)? {
            [key, value] => Ok((key, value)),
            _ => damaged("a dictionary is made of something else than pairs"),
        };
        self.items(id)?.iter().map(pair).collect()
    }

    fn size(&self, id: Id) -> Result<usize, PickleError> {
        match &self.values[id] {
            PickleValue::Int(number) => usize::try_from(*number)
                .or_else(|_| damaged(format!("{number} stands where a size belongs"))),
            other => damaged(format!("a {} stands where a size belongs", other.kind())),
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, PickleError> {
    std::str::from_utf8(bytes).or_else(|_| damaged("a text in its pickle is not UTF-8"))
}
