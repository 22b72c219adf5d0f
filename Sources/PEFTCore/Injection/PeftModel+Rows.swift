import NN
import PEFTSupport

extension PeftModel {
  /// Assigns an adapter to each sequence of a batch; `__base__` stands for none.
  ///
  /// ```swift
  /// var context = ForwardContext(batch.layout)
  /// context.sequenceAdapters = try peft.sequenceAdapters(["a", "b", "__base__"])
  /// ```
  ///
  /// Adapters need not be active, and merged ones count for those sequences alone that name them.
  ///
  /// - Parameters:
  ///   - names: One for each sequence.
  ///   - count: The number of sequences, when it is to be checked here.
  /// - Returns: What ``ForwardContext/sequenceAdapters`` takes; valid until one of the adapters is
  ///   deleted.
  /// - Throws: ``PEFTError`` `invalidAdapter`, listing the names that no adapter has, or for
  ///   another number of names than sequences; `unsupported` for adapters on stacked weights.
  public func sequenceAdapters(
    _ names: [String], count: Int? = nil
  ) throws(PEFTError) -> SequenceAdapters {
    if let count, count != names.count {
      throw PEFTError(
        .invalidAdapter,
        "Length of `adapter_names` should be the same as the number of inputs, but got "
          + "\(names.count) and \(count) respectively.",
        remedy: "Name one adapter for each sequence, '__base__' for none.")
    }
    let unknown = Set(names).filter { $0 != "__base__" && selection.place(of: $0) == nil }
    if !unknown.isEmpty {
      throw PEFTError(
        .invalidAdapter,
        "Trying to infer with non-existing adapter(s): \(unknown.sorted().joined(separator: ", "))",
        remedy: namesNote)
    }
    for name in Set(names).sorted() where name != "__base__" {
      guard let site = try record(name).sites.first(where: { hosts[$0].host is any WeightHost })
      else { continue }
      // The rows of an expert are those that were routed to it, whatever sequence they are from.
      throw PEFTError(
        .unsupported,
        "the adapter '\(name)' changes a stacked weight, which does not support mixed "
          + "adapter batches", at: hosts[site].path, remedy: "Activate it for the whole batch.")
    }
    return selection.assign(names)
  }
}
