import NN
import PEFTSupport
import Tensors

/// A new adapter before its layers are made: a tuner may look at the data first, change the
/// settings, leave places out and fix initial values.
public struct AdapterPlan {
  /// The adapter's name.
  public let adapter: String
  /// The settings; of the tuner's own type.
  public var config: any TunerConfig
  /// Where it is going to have layers, in model order.
  public var sites: [Site]
  /// Seed of the initial values.
  public let seed: UInt64
  /// The batches to run the model on, if the caller gave any.
  public let calibration: Calibration?
  /// Whether the values are going to be replaced by those of a file.
  public let isLoading: Bool
  /// Initial values, by the path of the site and the suffix of the parameter.
  public var initialValues: [String: [String: Tensor]] = [:]

  /// A layer that the adapter goes to.
  public struct Site {
    /// Its dotted path in the model.
    public let path: String
    /// The path that patterns are matched against; see ``AdapterSite/target``.
    public let target: String
    /// The layer.
    public let host: any AdapterHost
    /// Its parameters without anything merged into them.
    public let parameters: HostParameters
  }
}

/// Batches on which an initialisation runs the model: for the activations or the gradients that
/// EVA, CorDA and LoRA-GA begin from.
///
/// ```swift
/// let calibration = Calibration(batches, labels: { $0.labels }) { batch, observer in
///   var context = ForwardContext(batch.layout)
///   context.observer = observer
///   return try crossEntropy(model.logits(batch.tokens, context), labels: batch.labels)
/// }
/// try peft.add("default", LoRAConfig(initialization: .eva(EVASettings())), calibration: calibration)
/// ```
public final class Calibration {
  /// One batch.
  public struct Batch {
    /// A label for each row, if the batch has such; see the initialisation for what is done with
    /// them.
    public let labels: [Int32]?
    private let run: (@escaping HostObserver) throws(PEFTError) -> Tensor?

    init(
      labels: [Int32]?, run: @escaping (@escaping HostObserver) throws(PEFTError) -> Tensor?
    ) {
      self.labels = labels
      self.run = run
    }

    /// Runs the model without keeping what gradients need.
    public func observe(_ observer: @escaping HostObserver) throws(PEFTError) {
      // The error goes round withoutGradients, which knows no typed ones.
      let result: Result<Void, PEFTError> = withoutGradients {
        do throws(PEFTError) {
          _ = try run(observer)
          return .success(())
        } catch { return .failure(error) }
      }
      try result.get()
    }

    /// Runs the model and returns the loss with its graph, `nil` when the batch has none.
    public func loss(_ observer: @escaping HostObserver) throws(PEFTError) -> Tensor? {
      try run(observer)
    }
  }

  private var next: () -> Batch?
  private var seen: [Batch] = []
  private var isExhausted = false

  /// Creates a series of batches.
  ///
  /// - Parameters:
  ///   - batches: What to run the model on; read as far as needed, and kept, as an initialisation
  ///     may go over it more than once.
  ///   - labels: A label for each row of a batch; rows whose label is to be ignored are left out
  ///     where the initialisation says so.
  ///   - run: Runs the model on a batch, in evaluation mode and with the given observer in the
  ///     ``NN/ForwardContext``, and returns the loss as a scalar. Only LoRA-GA needs the loss; for
  ///     others `nil` will do.
  public init<Batches: Sequence>(
    _ batches: Batches, labels: @escaping (Batches.Element) -> [Int32]? = { _ in nil },
    run: @escaping (Batches.Element, @escaping HostObserver) throws(PEFTError) -> Tensor?
  ) {
    var iterator = batches.makeIterator()
    next = {
      iterator.next().map { element in
        Batch(labels: labels(element)) { (observer) throws(PEFTError) in
          try run(element, observer)
        }
      }
    }
  }

  /// The batch of a number, counted from 0; `nil` when there are not as many.
  public func batch(_ number: Int) -> Batch? {
    while seen.count <= number, !isExhausted {
      if let batch = next() { seen.append(batch) } else { isExhausted = true }
    }
    return number < seen.count ? seen[number] : nil
  }

  /// The batch of a number when the series is repeated without end; `nil` when it is empty.
  public func cycled(_ number: Int) -> Batch? {
    if let batch = batch(number) { return batch }
    return seen.isEmpty ? nil : seen[number % seen.count]
  }

  /// How many batches there are; reads all.
  public var count: Int {
    while batch(seen.count) != nil {}
    return seen.count
  }
}
