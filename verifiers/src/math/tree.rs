//! The tree of an answer, in an arena.
//!
//! Children are made before their parents, so they have smaller ids: every later stage walks the
//! arena forwards and needs no recursion, and dropping a deep tree is dropping a vector. What is
//! ambiguous on paper stays one node until the comparison decides: `(a,b)` is a pair and an
//! interval, `2,3` is a list and perhaps a number with a decimal comma.

use num_rational::BigRational;

/// A node of a [`Tree`].
pub type Id = u32;

/// Functions of one or more arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Function {
    Sine,
    Cosine,
    Tangent,
    Cotangent,
    Secant,
    Cosecant,
    ArcSine,
    ArcCosine,
    ArcTangent,
    HyperbolicSine,
    HyperbolicCosine,
    HyperbolicTangent,
    NaturalLogarithm,
    /// To base 10, or to the base that is the second argument.
    Logarithm,
    Exponential,
    SquareRoot,
    /// The root of the first argument whose degree is the second.
    Root,
    AbsoluteValue,
    Floor,
    Ceiling,
    Maximum,
    Minimum,
    GreatestDivisor,
    LeastMultiple,
    Determinant,
    Factorial,
    Binomial,
    /// The remainder with the sign of the second argument.
    Modulo,
    /// Sum over `(body, variable, from, to)`.
    Sum,
    /// Product over `(body, variable, from, to)`.
    Product,
    /// Anything that is compared by its parts only: integrals, limits, derivatives.
    Opaque,
}

/// Between the sides of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

/// Operations on sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum SetOperation {
    Union,
    Intersection,
    Difference,
}

/// What a node is. Lists of children are kept in the node: answers are small.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// An exact number; the flag says that it was written with a decimal point.
    Number(BigRational, bool),
    /// A variable by its name, with its subscript and primes; also `\mathbb{R}` and the like.
    Symbol(String),
    /// The ratio of a circle's circumference to its diameter.
    Pi,
    /// The base of the natural logarithm.
    Euler,
    /// The square root of -1.
    Imaginary,
    /// Positive infinity.
    Infinity,
    /// A sum.
    Sum(Vec<Id>),
    /// A product.
    Product(Vec<Id>),
    /// The first over the second.
    Quotient(Id, Id),
    /// The first to the power of the second.
    Power(Id, Id),
    /// Minus the child.
    Negative(Id),
    /// Plus and minus the child, as two values.
    PlusMinus(Id),
    /// The child is in degrees.
    Degrees(Id),
    /// The child in hundredths.
    Percent(Id),
    /// A function of its arguments; the name tells opaque ones apart.
    Call(Function, String, Vec<Id>),
    /// An unknown function of its arguments, such as `f(x)`.
    Apply(String, Vec<Id>),
    /// Digits in a base: `52_8`.
    Based(String, Id),
    /// Items between brackets: a tuple, point, vector or interval.
    Tuple {
        /// `(` or `[`.
        open: char,
        /// `)` or `]`.
        close: char,
        /// At least two, else it would be a group.
        items: Vec<Id>,
    },
    /// Items between braces.
    Set(Vec<Id>),
    /// Items without brackets; the second part is the value if the comma was a decimal point.
    List(Vec<Id>, Option<Id>),
    /// Two sets.
    Sets(SetOperation, Id, Id),
    /// Rows of equal width.
    Matrix {
        /// Columns.
        columns: usize,
        /// Row by row.
        items: Vec<Id>,
    },
    /// A chain: one more side than relations.
    Chain(Vec<Relation>, Vec<Id>),
    /// Words.
    Text(String),
}

/// An arena of nodes.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// Adds a node whose children are in the tree.
    pub fn add(&mut self, node: Node) -> Id {
        let id = self.nodes.len() as Id;
        self.nodes.push(node);
        id
    }

    /// The node of an id.
    pub fn get(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// Replaces a node in a range by another; for variables that a sum binds.
    pub fn rename(&mut self, from: Id, until: Id, node: &Node, by: &Node) {
        for at in from..until {
            if self.get(at) == node {
                self.nodes[at as usize] = by.clone();
            }
        }
    }

    /// Names the variables of either side by their order, up to `border` and after it.
    pub fn number_symbols(&mut self, border: Id) {
        let mut names: Vec<String> = Vec::new();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if at == border as usize + 1 {
                names.clear();
            }
            if let Node::Symbol(name) = node {
                let place = names.iter().position(|it| it == name).unwrap_or_else(|| {
                    names.push(name.clone());
                    names.len() - 1
                });
                *name = format!("variable {place}");
            }
        }
    }

    /// All nodes, children first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}
