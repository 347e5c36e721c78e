//! The text form of a plan, for people and snapshots: symbols, buffers with their places, arenas, steps and
//! what each costs.

use super::kernel::{Access, Attention, Expr, Kernel, Linear, Loop, MatrixLayout, Merge, RowOp, View};
use super::{Buffer, Carried, Plan, STAGES, Step, Storage, stage_index};
use engraft_ir::Dim;
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {}{}", self.name, flag(self.profiled, "profiled"))?;
        for (index, bound) in self.symbols.iter().enumerate() {
            let source = &self.buffer(bound.buffer).name;
            writeln!(f, "symbol {index} {} @{}: axis {} of {source}", bound.symbol, bound.stage, bound.axis)?;
        }
        for Carried { input, output } in &self.carried {
            writeln!(f, "carried: input {input} is the beginning of output {output}")?;
        }
        if let Some(bound) = self.items.and_then(|items| self.symbols.get(items)) {
            writeln!(f, "items: {}", bound.symbol)?;
        }
        writeln!(f, "\nbuffers")?;
        for (index, buffer) in self.buffers.iter().enumerate() {
            writeln!(f, "  b{index} {buffer}")?;
        }
        for stage in STAGES {
            let arena = &self.arenas[stage_index(stage)];
            if self.steps_at(stage).next().is_none() {
                continue;
            }
            writeln!(f, "\n{stage}")?;
            for (slot, bytes) in arena.iter().enumerate() {
                writeln!(f, "  slot {slot}: {bytes} bytes")?;
            }
            if arena.len() > 1 {
                let (shared, apart) = self.scratch(stage);
                writeln!(f, "  arena: {shared} bytes, for values of {apart} bytes")?;
            }
            for (index, step) in self.steps_at(stage) {
                writeln!(f, "  {index} {step}\n    {}", self.cost(step))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ty, stage, storage } = self;
        match storage {
            Storage::Input(i) => write!(f, "input {i}")?,
            Storage::Param(i) => write!(f, "param {i} @{stage}")?,
            Storage::Staged(i) => write!(f, "staged {i} @{stage}")?,
            Storage::Output(i) => write!(f, "output {i}")?,
            Storage::Constant(i) => write!(f, "constant {i}")?,
            Storage::Arena(slot) => write!(f, "slot {} @{stage}", slot.0)?,
        }
        write!(f, " {name}: {ty}")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads: Vec<_> = self.reads.iter().map(|b| format!("b{}", b.0)).collect();
        write!(f, "b{} = {} {} # {}", self.write.0, self.kernel, reads.join(" "), self.name)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Pack(pack) => {
                write!(f, "[{}, batch {}, {}, scale {}]", pack.packing, pack.batch, pack.matrix, pack.scale)
            }
            Self::Linear(linear) => write!(f, "[{linear}]"),
            Self::Dot(dot) => write!(f, "[rows {}, k {}, out {}]", dot.rows, dot.k, dot.out),
            Self::RowNorm(norm) => write!(f, "[out {}, k {}, rank {}]", norm.out, norm.k, norm.rank),
            Self::Merge(Merge { out, k, rank, gain }) => {
                write!(f, "[out {out}, k {k}, rank {rank}{}]", flag(*gain, "gain"))
            }
            Self::Loop(body) => write!(f, "[{body}]"),
            Self::Row(row) => {
                write!(f, "[outer {}, n {}, inner {}", row.outer, row.n, row.inner)?;
                match row.op {
                    RowOp::Reduce(_) | RowOp::Softmax => {}
                    RowOp::Normalize { epsilon, epsilon_at } => {
                        write!(f, ", epsilon {epsilon:e} {epsilon_at:?}")?;
                    }
                    RowOp::LayerNorm { epsilon } | RowOp::RmsNorm { epsilon } => {
                        write!(f, ", epsilon {epsilon:e}")?;
                    }
                }
                write!(f, "{}{}]", flag(row.weight, "weight"), flag(row.bias, "bias"))
            }
            Self::Cast(cast) => write!(f, "[{} {} to f32]", cast.count, cast.from),
            Self::Attention(attention) => write!(f, "[{attention}]"),
            Self::Gather(gather) => {
                write!(
                    f,
                    "[{} {} ids, {} rows of {} {}{}]",
                    gather.count,
                    gather.ids,
                    gather.rows,
                    gather.width,
                    gather.dtype,
                    flag(gather.from_panels, "from panels")
                )
            }
        }
    }
}

fn flag(is_set: bool, name: &str) -> String {
    if is_set { format!(", {name}") } else { String::new() }
}

impl fmt::Display for MatrixLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out {} by {}, k {} by {}", self.out, self.out_stride, self.k, self.k_stride)
    }
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, queries, keys, heads, kv_heads, d, e, scale, .. } = self;
        write!(
            f,
            "batch {batch}, queries {queries}, keys {keys}, heads {heads} on {kv_heads}, d {d}, e {e}"
        )?;
        write!(f, ", scale {scale}{}", flag(self.causal, "causal"))?;
        if let Some(window) = self.window {
            write!(f, ", window {window}")?;
        }
        if let Some(mask) = self.mask {
            write!(f, ", mask {mask}")?;
        }
        write!(f, ", q {}, k {}, v {}", self.q, self.k, self.v)
    }
}

impl fmt::Display for View {
    /// `[offset + stride b + stride i + c]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strides = [&self.batch_stride, &self.row_stride].map(Clone::clone);
        let strides = strides.into_iter().chain([Dim::fixed(1)]).collect();
        Access { strides, offset: self.offset.clone() }.fmt(f)
    }
}

impl fmt::Display for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch != Dim::fixed(1) {
            write!(f, "batch {}, ", self.batch)?;
        }
        write!(f, "rows {}, k {}, out {}", self.rows, self.k, self.out)?;
        if let Some(rank) = &self.rank {
            write!(f, ", rank {rank}")?;
        }
        write!(f, "{}{}", flag(self.gain, "gain"), flag(self.bias, "bias"))?;
        if let Some(module) = &self.adaptable {
            write!(f, ", adaptable as {module}")?;
        }
        match &self.epilogue {
            Some(epilogue) => write!(f, ", epilogue {epilogue}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space: Vec<_> = self.space.iter().map(ToString::to_string).collect();
        write!(f, "{} over [{}]: {}", self.dtype, space.join(", "), self.write)?;
        f.write_str(" = ")?;
        self.value(self.body.len().saturating_sub(1), f)
    }
}

impl Loop {
    /// Writes the value of this number as an expression.
    fn value(&self, index: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.body.get(index) {
            None => f.write_str("nothing"),
            Some(Expr::Load(access)) => write!(f, "r{access}{}", self.reads[*access]),
            Some(Expr::Number(number)) => write!(f, "{number:?}"),
            Some(Expr::Unary(function, x)) => {
                write!(f, "{}(", engraft_ir::Op::from(*function).name())?;
                self.value(*x, f)?;
                f.write_str(")")
            }
            Some(Expr::Binary(function, a, b)) => {
                write!(f, "{}(", engraft_ir::Op::from(*function).name())?;
                self.value(*a, f)?;
                f.write_str(", ")?;
                self.value(*b, f)?;
                f.write_str(")")
            }
        }
    }
}

impl fmt::Display for Access {
    /// `[offset + stride i0 + stride i1 ..]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut terms: Vec<String> = Vec::new();
        if self.offset != Dim::fixed(0) {
            terms.push(self.offset.to_string());
        }
        for (axis, stride) in self.strides.iter().enumerate().filter(|(_, s)| **s != Dim::fixed(0)) {
            match stride.as_fixed() {
                Some(1) => terms.push(format!("i{axis}")),
                _ => terms.push(format!("({stride})i{axis}")),
            }
        }
        if terms.is_empty() {
            terms.push("0".to_owned());
        }
        write!(f, "[{}]", terms.join(" + "))
    }
}
