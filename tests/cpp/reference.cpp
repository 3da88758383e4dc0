#include "reference.h"

namespace lookaheadkv::cpu {

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) sum += a[c] * b[c];
  return sum;
}

namespace {

void add(double weight, const double* from, double* to, int64_t n) {
  for (int64_t c = 0; c < n; ++c) to[c] += weight * from[c];
}

// One query row; `seen` are the keys it sees.
void add_row(const Inputs& in, int64_t b, int64_t h, int64_t i, const std::vector<int64_t>& seen,
             Expected& e) {
  const Problem& p = in.p;
  const int64_t d = p.head_dim, n = p.num_prompt, group = p.num_heads / p.num_kv_heads;
  const int64_t kv = h / group, kv_row = b * p.num_kv_heads + kv;
  const int64_t row = (b * p.num_heads + h) * p.num_rows + i;
  const double weight = 1.0 / static_cast<double>(group * p.num_rows);
  std::vector<double> prob;
  for (const int64_t j : seen)
    prob.push_back(p.scale * dot(in.q.row(b, h, i), in.k.row(b, kv, j), d));
  const double maximum = *std::max_element(prob.begin(), prob.end());
  double sum = 0, delta = 0;
  for (double& x : prob) sum += x = std::exp(x - maximum);
  e.lse[row] = maximum + std::log(sum);
  const auto upstream = [&](int64_t j) { return j < n ? in.grad[kv_row * n + j] : 0.0; };
  for (size_t at = 0; at < seen.size(); ++at) {
    const int64_t j = seen[at];
    prob[at] /= sum;
    if (j < n) e.scores[kv_row * n + j] += weight * prob[at];
    delta += prob[at] * upstream(j);
    add(prob[at], in.v.row(b, kv, j), &e.out[row * d], d);
  }
  for (size_t at = 0; at < seen.size(); ++at) {
    const int64_t j = seen[at];
    const double ds = p.scale * weight * prob[at] * (upstream(j) - delta);
    add(ds, in.k.row(b, kv, j), &e.grad_query[row * d], d);
    add(ds, in.q.row(b, h, i), &e.grad_key[(kv_row * (n + p.num_rows) + j) * d], d);
  }
}

}  // namespace

Expected reference(const Inputs& in) {
  const Problem& p = in.p;
  const int64_t keys = p.num_prompt + p.num_rows;
  const auto size = [](int64_t a, int64_t b, int64_t c, int64_t d) {
    return static_cast<size_t>(a * b * c * d);
  };
  Expected e;
  e.out.resize(size(p.batch, p.num_heads, p.num_rows, p.head_dim));
  e.lse.resize(size(p.batch, p.num_heads, p.num_rows, 1));
  e.scores.resize(size(p.batch, p.num_kv_heads, p.num_prompt, 1));
  e.grad_query.resize(e.out.size());
  e.grad_key.resize(size(p.batch, p.num_kv_heads, keys, p.head_dim));
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t i = 0; i < p.num_rows; ++i) {
      std::vector<int64_t> seen;
      for (int64_t j = in.leftpad[b]; j < in.seqused[b]; ++j) seen.push_back(j);
      for (int64_t j = 0; j <= i; ++j) seen.push_back(p.num_prompt + j);
      for (int64_t h = 0; h < p.num_heads; ++h) add_row(in, b, h, i, seen, e);
    }
  }
  for (size_t at = 0; at < in.indices.size(); ++at) {
    const int64_t head = static_cast<int64_t>(at) / in.kept;
    const int64_t b = head / p.num_kv_heads, h = head % p.num_kv_heads;
    for (const auto& [tensor, out] :
         {std::pair{&in.k, &e.kept_key}, std::pair{&in.v, &e.kept_value}}) {
      if (in.indices[at] < 0) {
        out->insert(out->end(), static_cast<size_t>(tensor->row_size()), '\0');
      } else {
        const char* row = tensor->row_bytes(b, h, in.indices[at]);
        out->insert(out->end(), row, row + tensor->row_size());
      }
    }
  }
  return e;
}

}  // namespace lookaheadkv::cpu
