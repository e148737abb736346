//! Replies of different lengths laid end to end, and sums over each of them.

use candle_core::{DType, Device, Result, Tensor};

/// How a flat vector of tokens divides into replies.
#[derive(Clone, Debug)]
pub struct Rows {
    lengths: Vec<usize>,
    /// For each token, the reply it belongs to; `(tokens)`, u32.
    row_of_token: Tensor,
}

impl Rows {
    /// Replies of these numbers of tokens; 0 is allowed.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(lengths: &[usize]) -> Result<Self> {
        let rows: Vec<u32> = lengths
            .iter()
            .enumerate()
            .flat_map(|(row, length)| std::iter::repeat_n(row as u32, *length))
            .collect();
        let tokens = rows.len();
        let row_of_token = Tensor::from_vec(rows, tokens, &Device::Cpu)?;
        Ok(Self { lengths: lengths.to_vec(), row_of_token })
    }

    /// Tokens of each reply.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Tokens of all replies.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Sum over each reply: `(tokens)` to `(rows)`, f64, with gradient.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn sum(&self, tokens: &Tensor) -> Result<Tensor> {
        Tensor::zeros(self.lengths.len(), DType::F64, &Device::Cpu)?.index_add(
            &self.row_of_token,
            tokens,
            0,
        )
    }

    /// Mean over each reply: `(tokens)` to `(rows)`, f64, with gradient; 0 for an empty one.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn mean(&self, tokens: &Tensor) -> Result<Tensor> {
        let shares: Vec<f64> = self.lengths.iter().map(|it| 1.0 / (*it).max(1) as f64).collect();
        self.sum(tokens)? * Tensor::new(shares, &Device::Cpu)?
    }

    /// Each token gets its reply's number: `(rows)` to `(tokens)`, with gradient.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn spread(&self, rows: &Tensor) -> Result<Tensor> {
        rows.index_select(&self.row_of_token, 0)
    }

    /// The same for plain numbers.
    pub fn spread_values(&self, rows: &[f64]) -> Vec<f64> {
        let pairs = rows.iter().zip(&self.lengths);
        pairs.flat_map(|(value, length)| std::iter::repeat_n(*value, *length)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn sums_and_means_reach_their_rows_and_gradients_their_tokens() {
        let rows = Rows::new(&[2, 0, 1]).expect("rows");
        let tokens = Var::new(&[1.0f64, 3.0, 5.0], &Device::Cpu).expect("var");
        let mean = rows.mean(&tokens).expect("mean");
        assert_eq!(mean.to_vec1::<f64>().expect("values"), [2.0, 0.0, 5.0]);
        let spread = rows.spread(&mean).expect("spread");
        assert_eq!(spread.to_vec1::<f64>().expect("values"), [2.0, 2.0, 5.0]);
        let weights = Tensor::new(&[1.0f64, 2.0, 3.0], &Device::Cpu).expect("tensor");
        let total = (spread * weights).and_then(|it| it.sum_all()).expect("sum");
        let gradients = total.backward().expect("backward");
        let slopes = gradients.get(&tokens).expect("gradient").to_vec1::<f64>().expect("values");
        assert_eq!(slopes, [1.5, 1.5, 3.0]);
    }
}
