// doge::TokenEmbedding: rows of a quantized table.
#include "op.h"

namespace doge::ort {

namespace {

class Embedding final : public Kernel {
 public:
  explicit Embedding(Node& node) {
    node.read_roles({"input_ids", "table", "table.scale"});
    ids_ = node.place("input_ids");
    // No input tells the type of the output: it is the one that the graph declares.
    element_ = node.output_type(0);
    if (!is_float(element_))
      throw Error(std::string("hidden_states is ") + type_name(element_) + ", not float32, float16 or bfloat16.");
    const Tensor table = node.weight("table");
    table_ = node.matrix("table", 0, table.shape.rank() == 2 ? table.shape[1] : 0);
  }

  void run(Call& call) const override {
    const Tensor ids = call.input(ids_);
    const bool rows = ids.shape.rank() == 2;
    const int64_t batch = rows ? ids.shape[0] : 0, sequence = rows ? ids.shape[1] : 0;
    ids.expect("input_ids", kInt64, {batch, sequence});
    void* output = call.output(0, {batch, sequence, table_.k});
    if (output == nullptr || batch * sequence == 0) return;
    doge::token_embedding(table_, dtype_of(element_), batch * sequence, ids.as<int64_t>(), output);
  }

 private:
  ElementType element_ = kUndefined;
  size_t ids_ = 0;
  Matrix table_;
};

}  // namespace

OpType token_embedding() {
  return {"TokenEmbedding", {{kUndefined, kVariadic}}, {{kUndefined}}, [](Node& node) -> std::unique_ptr<Kernel> {
            return std::make_unique<Embedding>(node);
          }};
}

}  // namespace doge::ort
