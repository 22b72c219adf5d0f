import NN
import PEFTCore
import PEFTSupport
import Tensors

/// LoRA on a weight itself (`target_parameters`): on the matrices of experts, stacked in one
/// parameter, or on a single matrix.
///
/// A is `[experts·r, in]`, its rows by expert, then rank; B is `[out, r·experts]`, its columns by
/// rank, then expert (peft, `ParamWrapper`). The weight of expert e changes by s·B_e·A_e.
final class LoRAParameter: TunerLayer {
  /// Rank of the update of one matrix.
  private let rank: Int
  /// s, the factor of B·A.
  private let scaling: Double
  private let a: Parameter
  private let b: Parameter
  private let experts: Int
  private let isTransposed: Bool

  init(_ site: AdapterSite, _ config: LoRAConfig) throws(PEFTError) {
    rank = try config.rank(site.target)
    scaling = try config.scaling(site.target, rank: rank)
    let initialization = config.initialization
    guard initialization == initialization.withoutWeight else {
      throw PEFTError(
        .unsupported,
        "'init_lora_weights': \(initialization.json.text()) is not supported for parameters",
        remedy: "Use true, false or \"gaussian\".")
    }
    let host = site.host
    let stack = host as? StackedWeight
    experts = stack?.count ?? 1
    isTransposed = stack?.isTransposed ?? false
    let isTable = host is Embedding
    // The table of an embedding is [count, width], and so a weight with `width` inputs.
    let inputs = isTable ? host.outputFeatures : host.inputFeatures
    let outputs = isTable ? host.inputFeatures : host.outputFeatures
    let initial = InitialFactors.drawn(
      site, initialization, rank, a: [experts * rank, inputs], b: [outputs, rank * experts])
    a = Parameter(initial.a)
    b = Parameter(initial.b)
  }

  var parameters: [AdapterParameter] {
    [AdapterParameter(LoRAKey.a, a), AdapterParameter(LoRAKey.b, b)]
  }

  /// Rows of A that belong to an expert.
  private func rowsOfA(_ expert: Int) -> [Int32] {
    (expert * rank..<(expert + 1) * rank).map { Int32($0) }
  }

  /// Columns of B that belong to an expert.
  private func columnsOfB(_ expert: Int) -> [Int32] {
    (0..<rank).map { Int32($0 * experts + expert) }
  }

  func contribute(_ call: LayerCall, to sum: inout Tensor) {
    let scale = Float(scaling)
    switch call.input {
    case .features(let x):
      sum.addProduct(linear(x, a.tensor), b.tensor, scale: scale)
    case .tokenIDs(let ids):
      let low = gather(b.tensor, rows: ids)
      sum.addProduct(
        (call.host as? Embedding)?.scaled(low) ?? low, a.tensor.transposed(), scale: scale)
    case .expert(let x, let index):
      if experts == 1 {
        sum.addProduct(linear(x, a.tensor), b.tensor, scale: scale)
        return
      }
      let low = linear(x, gather(a.tensor, rows: rowsOfA(index)))
      let high = selectColumns(b.tensor, columnsOfB(index)).transposed()
      sum.addProduct(low, high, scale: scale)
    case .images:
      preconditionFailure("the weight of a convolution is no matrix")
    }
  }

  func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    let scale = Float(scaling)
    if experts == 1 {
      block.addProduct(b.value.rowRange(rows), a.value.transposed(), scale: scale)
      return
    }
    let height = isTransposed ? a.shape[1] : b.shape[0]
    for expert in 0..<experts {
      let own = rows.clamped(to: expert * height..<(expert + 1) * height)
      if own.isEmpty { continue }
      let inner = own.lowerBound - expert * height..<own.upperBound - expert * height
      let (left, right) = withoutGradients {
        (
          gather(a.value, rows: rowsOfA(expert)),
          selectColumns(b.value, columnsOfB(expert)).transposed()
        )
      }
      // Rows of B_e·A_e, or of its transpose.
      var part = block.rowRange(own.lowerBound - rows.lowerBound..<own.upperBound - rows.lowerBound)
      if isTransposed {
        part.addProduct(left.transposed().rowRange(inner), right, scale: scale)
      } else {
        part.addProduct(right.rowRange(inner), left.transposed(), scale: scale)
      }
      block.copyRows(of: part, at: own.lowerBound - rows.lowerBound)
    }
  }

  func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    let own = PrintedLayers<LoRAParameter>(layers)
    return LoRAPrinter.wrapper(
      "ParamWrapper", around: base, dropout: own.modules { _ in PrintedModule("Identity") },
      a: own.modules { LoRAPrinter.linear($0.a.shape[1], $0.a.shape[0]) },
      b: own.modules { LoRAPrinter.linear($0.b.shape[1], $0.b.shape[0]) })
  }
}

/// LoRA on parameters.
struct LoRAParameterDispatcher: Dispatcher {
  var supports: String { "parameters of two or three dimensions" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard site.parameter != nil, let config = site.config as? LoRAConfig else {
      return nil
    }
    guard site.host is Linear || site.host is Embedding || site.host is StackedWeight else {
      return nil
    }
    return try LoRAParameter(site, config)
  }
}
