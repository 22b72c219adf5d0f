/// The adapter of each sequence of a mixed batch.
///
/// Made by the adapter framework from names, which it checks: a sequence cannot be assigned to an
/// adapter that does not exist. Valid until one of the adapters is deleted.
public struct SequenceAdapters: Sendable {
  /// The names; `__base__` for none.
  public let names: [String]
  /// The place of each adapter among those of the model; -1 for none.
  package let slots: [Int]
  /// What tells a place's adapter from one that had the place before.
  package let stamps: [Int]

  /// Creates an assignment.
  package init(names: [String], slots: [Int], stamps: [Int]) {
    precondition(names.count == slots.count && names.count == stamps.count)
    self.names = names
    self.slots = slots
    self.stamps = stamps
  }

  /// The number of sequences.
  public var count: Int { names.count }

  /// The assignment of some of the sequences, in the given order.
  public func keeping(_ sequences: [Int]) -> SequenceAdapters {
    SequenceAdapters(
      names: sequences.map { names[$0] }, slots: sequences.map { slots[$0] },
      stamps: sequences.map { stamps[$0] })
  }
}
