import NN
import PEFTSupport
import Tensors

/// One adapter on one host.
///
/// A layer contributes its own change against the untouched base, and the changes of several
/// layers add up: W_eff = W + Σᵢ ΔWᵢ, so their order does not matter.
public protocol TunerLayer: AnyObject {
  /// The parameters under peft's key suffixes (`lora_A.weight`), in the order of peft's files.
  var parameters: [AdapterParameter] { get }
  /// Whether ``contribute(_:to:)`` looks at the output of the untouched base layer.
  var needsBaseOutput: Bool { get }
  /// A weight that stands in for the host's own where this layer is active, in the same
  /// orientation; `nil`, the default, for the host's own.
  ///
  /// The change from the host's weight to this one counts as the layer's, in addition to what it
  /// contributes, but ``addDelta(rows:to:base:)`` leaves it out.
  var standIn: (any WeightMatrix)? { get }
  /// Initial values under the suffixes of ``parameters`` that the layer's change is measured from,
  /// as PiSSA's is; empty, the default, where there are none. They are saved beside the adapter.
  var referenceTensors: [(suffix: String, value: Tensor)] { get }

  /// The values of the plain form of this layer, which changes the base as this one does and refers
  /// to nothing but the base; by default the parameters as they are.
  ///
  /// - Throws: ``PEFTError`` `unsupported` when there is no such form.
  func plainTensors() throws(PEFTError) -> [(suffix: String, value: Tensor)]

  /// Adds this layer's change of the host's output.
  ///
  /// - Parameters:
  ///   - call: The input, and what else a change may depend on.
  ///   - sum: The base's output plus the changes of other layers, `[…, outputFeatures]`.
  func contribute(_ call: LayerCall, to sum: inout Tensor)

  /// The change as a product of two factors, s·B·A, when that is all it is in this pass; a batch
  /// that mixes adapters then takes all of them at once.
  func lowRankFactors(_ context: ForwardContext) -> LowRankFactors?

  /// The host's whole output where this layer is the only one in use, for layers that know a
  /// cheaper way than to add to the base's output; `nil` if there is none.
  func output(_ call: LayerCall) -> Tensor?

  /// Adds rows of ΔW, in the orientation of the host's matrix, to a block.
  ///
  /// That has one row for each output, also where files store the weight transposed, and a
  /// convolution's kernel is flattened; an embedding's has one row for each token. Only a layer
  /// that cannot be merged throws.
  ///
  /// - Parameters:
  ///   - rows: Which rows of the weight.
  ///   - block: `[rows.count, columns]`, what they are added to.
  ///   - base: The host's untouched weight.
  func addDelta(rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix) throws(PEFTError)

  /// Called after values were read from a file: refuses those that do not belong to the host, and
  /// computes those that files do not hold.
  ///
  /// - Parameter parameters: The host's, without anything merged into them.
  /// - Throws: ``PEFTError``; a new adapter is removed then, another one gets its values back.
  func didLoad(on parameters: HostParameters) throws(PEFTError)

  /// Gives the parameters values with which the layer changes nothing, by default zeros; called where
  /// the file that takes the place of an adapter's values has none for this layer.
  ///
  /// - Parameter parameters: The host's, without anything merged into them.
  /// - Throws: ``PEFTError`` when there are no such values; the model is as it was then.
  func becomeEmpty(on parameters: HostParameters) throws(PEFTError)

  /// What merging adds to the host's bias, `[outputFeatures]`; `nil`, the default, leaves it alone.
  var biasDelta: Tensor? { get }

  /// What is odd about the layer on its host, in peft's words; `nil`, the default, if nothing is.
  var remark: String? { get }

  /// What layers have in common that print as one; the layer's type by default.
  var printingKind: ObjectIdentifier { get }

  /// How peft prints the host with the layers of this kind in it.
  ///
  /// - Parameters:
  ///   - base: The host.
  ///   - layers: All layers of this ``printingKind`` on the host, by adapter name.
  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule
}

extension TunerLayer {
  /// Whether ``contribute(_:to:)`` looks at the output of the untouched base layer.
  public var needsBaseOutput: Bool { false }

  /// The type.
  public var printingKind: ObjectIdentifier { ObjectIdentifier(type(of: self)) }

  /// The host's own weight.
  public var standIn: (any WeightMatrix)? { nil }

  /// None.
  public var referenceTensors: [(suffix: String, value: Tensor)] { [] }

  /// The parameters that files hold, as they are.
  public func plainTensors() throws(PEFTError) -> [(suffix: String, value: Tensor)] {
    parameters.filter(\.isStored).map {
      ($0.suffix, $0.isTransposed ? $0.parameter.value.transposed() : $0.parameter.value)
    }
  }

  /// None: the change is added to the base's output.
  public func output(_ call: LayerCall) -> Tensor? { nil }
  /// Accepts all values.
  public func didLoad(on parameters: HostParameters) throws(PEFTError) {}
  /// Zeros.
  public func becomeEmpty(on parameters: HostParameters) throws(PEFTError) {
    for own in self.parameters { own.parameter.assign(.zeros(own.parameter.shape)) }
  }
  /// What merging adds to the host's bias: nothing.
  public var biasDelta: Tensor? { nil }
  /// Nothing is odd.
  public var remark: String? { nil }

  /// No factors: the layer is asked for its contribution, row group by row group.
  public func lowRankFactors(_ context: ForwardContext) -> LowRankFactors? { nil }
}

/// A parameter of an adapter layer.
public struct AdapterParameter {
  /// The end of its key in a file: "lora_A.weight".
  public let suffix: String
  /// The value.
  public let parameter: Parameter
  /// Whether training changes it while its adapter is active.
  public let isTrained: Bool
  /// What joins the host's path and the suffix in a file: "." but for files of old programs.
  public var separator = "."
  /// Other ends of its key that are read as well, joined with ".".
  public var otherSuffixes: [String] = []
  /// Whether files hold it; a value that can be computed anew need not be stored.
  public var isStored = true
  /// Whether files hold it in F32 whatever the precision of the others.
  public var isExact = false
  /// Whether the file holds the transpose of the value, as for the adapter of a tied head, whose
  /// factors are those of the embedding the other way round.
  public var isTransposed = false

  /// Describes a parameter.
  public init(_ suffix: String, _ parameter: Parameter, isTrained: Bool = true) {
    self.suffix = suffix
    self.parameter = parameter
    self.isTrained = isTrained
  }

  /// The keys under which files may hold it, that under which it is written first.
  public func keys(at path: String) -> [String] {
    (["\(path)\(separator)\(suffix)"] + otherSuffixes.map { "\(path).\($0)" })
      .map(FileKey.key)
  }
}

/// What a layer gets in a forward pass.
public struct LayerCall {
  /// The host's input.
  public let input: HostInput
  /// The output of the untouched base; only for layers that ask for it.
  public let base: Tensor?
  /// The host.
  public let host: any AdapterHost
  /// The host's untouched parameters, whatever is merged into those that it has now.
  public let parameters: HostParameters
  /// The pass.
  public let context: ForwardContext
}
