import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

@testable import Training

/// Expected numbers from torch and transformers (Tests/Goldens/optimisers, make_goldens.py).
struct ScheduleTests {
  @Test func ratesEqualTransformers() throws {
    let golden = try FileSystem.readJSON(TestData.golden("optimisers/schedules.json"))
    let cases = try #require(golden["schedules"]?.array)
    var kinds: Set<String> = []
    for entry in cases {
      let name = try #require(entry["lr_scheduler_type"]?.string)
      let kind = try #require(LearningRateSchedule.Kind(rawValue: name))
      kinds.insert(name)
      let schedule = LearningRateSchedule(
        kind, baseRate: entry["learning_rate"]!.double!, warmupSteps: entry["warmup_steps"]!.int!,
        totalSteps: entry["total_steps"]!.int!)
      for (step, rate) in entry["rates"]!.array!.enumerated() {
        let expected = rate.double!
        #expect(
          abs(schedule.rate(at: step) - expected) <= 1e-15 * max(expected, 1e-3),
          "\(name), step \(step)")
      }
    }
    #expect(kinds == Set(LearningRateSchedule.Kind.allCases.map(\.rawValue)))
  }

  @Test func warmupRatiosAreRoundedUp() throws {
    let golden = try FileSystem.readJSON(TestData.golden("optimisers/schedules.json"))
    for entry in try #require(golden["warmup"]?.array) {
      let steps = LearningRateSchedule.warmupSteps(
        .ratio(entry["warmup_ratio"]!.double!), totalSteps: entry["total_steps"]!.int!)
      #expect(steps == entry["warmup_steps"]!.int!, "\(entry)")
    }
  }
}

struct AdamWTests {
  private func tensor(_ value: JSONValue) -> Tensor {
    let scalars = value.array!.map { Float($0.double!) }
    return Tensor(shape: [scalars.count], scalars: scalars)
  }

  @Test func stepsEqualTorch() throws {
    let golden = try FileSystem.readJSON(TestData.golden("optimisers/adamw.json"))
    let runs = try #require(golden["runs"]?.array)
    #expect(runs.count >= 4)
    for run in runs {
      let settings = run["settings"]!
      let parameters = golden["start"]!.array!.enumerated().map {
        AdapterTensor(key: "p\($0.offset)", parameter: Parameter(tensor($0.element)))
      }
      let optimizer = AdamW(
        parameters,
        settings: OptimizerSettings(
          learningRate: settings["lr"]!.double!,
          weightDecay: settings["weight_decay"]!.double!,
          beta1: settings["betas"]!.array![0].double!, beta2: settings["betas"]!.array![1].double!,
          epsilon: settings["eps"]!.double!))
      for (step, values) in golden["gradients"]!.array!.enumerated() {
        var gradients = Gradients()
        for (entry, value) in zip(parameters, values.array!) {
          gradients[entry.parameter] = tensor(value)
        }
        let norm = optimizer.norm(of: gradients)
        let expectedNorm = run["grad_norms"]!.array![step].double!
        #expect(abs(norm - expectedNorm) <= 1e-6 * max(expectedNorm, 1e-6))
        optimizer.update(
          gradients, rateFactor: 1,
          gradientScale: gradientClippingFactor(
            norm: norm, limit: settings["max_grad_norm"]?.double ?? 0))
        for (entry, expected) in zip(parameters, run["after"]!.array![step].array!) {
          for (a, b) in zip(entry.parameter.value.scalars, tensor(expected).scalars) {
            let bound: Float = 2e-6 * max(abs(b), 0.01)
            #expect(abs(a - b) <= bound, "step \(step), \(settings)")
          }
        }
      }
    }
  }

  /// torch skips parameters whose gradient is None, and their step count stays.
  @Test func parametersWithoutGradientStay() throws {
    let a = AdapterTensor(key: "a", parameter: Parameter(Tensor(shape: [1], scalars: [1])))
    let b = AdapterTensor(key: "b", parameter: Parameter(Tensor(shape: [1], scalars: [1])))
    let optimizer = AdamW([a, b], settings: OptimizerSettings(learningRate: 0.1, weightDecay: 0.1))
    var gradients = Gradients()
    gradients[a.parameter] = Tensor(shape: [1], scalars: [0.5])
    optimizer.update(gradients)
    #expect(b.parameter.value.scalars == [1])
    // The first step of Adam has the size of the rate: 1·(1 − 0.1·0.1) − 0.1.
    #expect(abs(a.parameter.value.scalars[0] - 0.89) < 1e-6)
  }

  @Test func stateSurvivesAFileToTheBit() throws {
    let folder = try TemporaryFolder()
    func make() -> AdapterTensor {
      AdapterTensor(
        key: "x.lora_A.weight", parameter: Parameter(Tensor(shape: [3], scalars: [1, -2, 0.5])))
    }
    func gradient(_ step: Int, _ entry: AdapterTensor) -> Gradients {
      var gradients = Gradients()
      gradients[entry.parameter] = Tensor(
        shape: [3], scalars: [0.1 * Float(step), -0.3, 0.7 / Float(step)])
      return gradients
    }
    let whole = make()
    let settings = OptimizerSettings(learningRate: 0.01)
    let first = AdamW([whole], settings: settings)
    for step in 1...3 { first.update(gradient(step, whole)) }
    try SafetensorsWriter.write(first.items, to: folder("optimizer.safetensors"))
    let resumed = AdapterTensor(key: whole.key, parameter: Parameter(whole.parameter.value))
    let second = AdamW([resumed], settings: settings)
    try second.load(SafetensorsFile(folder("optimizer.safetensors")))
    for step in 4...6 {
      first.update(gradient(step, whole))
      second.update(gradient(step, resumed))
    }
    #expect(resumed.parameter.value.scalars == whole.parameter.value.scalars)
    let other = AdamW([
      AdapterTensor(key: "y", parameter: Parameter(Tensor(shape: [3], scalars: [0, 0, 0])))
    ])
    #expect(throws: PEFTError.self) {
      try other.load(SafetensorsFile(folder("optimizer.safetensors")))
    }
  }

  /// The formula of torch.nn.utils.clip_grad_norm_: limit / (norm + 1e-6), at most 1.
  @Test func clippingFactors() {
    #expect(gradientClippingFactor(norm: 0.5, limit: 1) == 1)
    #expect(gradientClippingFactor(norm: 4, limit: 1) == Float(1 / (4 + 1e-6)))
    #expect(gradientClippingFactor(norm: 4, limit: 0) == 1)
  }
}

struct TrainingPlanTests {
  private func plan(_ examples: Int, _ change: (inout TrainingArguments) -> Void) -> TrainingPlan {
    var arguments = TrainingArguments(outputFolder: "")
    change(&arguments)
    return TrainingPlan(arguments, exampleCount: examples)
  }

  /// Counts as in the trainer of transformers: partial batches and partial accumulations count.
  @Test func stepsAreCountedAsInTransformers() {
    let plan = plan(10) {
      $0.trainBatchSize = 2
      $0.accumulationSteps = 2
      $0.epochs = 2
      $0.warmup = .ratio(0.2)
    }
    #expect(plan.batchesPerEpoch == 5 && plan.updatesPerEpoch == 3)
    #expect(plan.totalSteps == 6 && plan.warmupSteps == 2 && plan.epochCount == 2)
    #expect((0...6).map { plan.epochs(after: $0) } == [0, 0.4, 0.8, 1, 1.4, 1.8, 2])
    #expect(plan.batches(of: 0).map { $0.places } == [0..<2, 2..<4])
    #expect(plan.batches(of: 2).map { $0.places } == [8..<10])
    #expect(plan.batches(of: 3).map { $0.number } == [5, 6])
  }

  @Test func fractionsAndStepLimits() {
    #expect(plan(10) { $0.epochs = 0.5 }.totalSteps == 1)
    #expect(plan(100) { $0.epochs = 1.5 }.totalSteps == 20)
    #expect(plan(100) { $0.maxSteps = 30 }.totalSteps == 30)
    #expect(plan(100) { $0.maxSteps = 30 }.epochCount == 3)
  }

  @Test func everyEpochHasItsOwnOrderAndItIsAPermutation() {
    let first = DataOrder.permutation(100, seed: 1, epoch: 0)
    #expect(first.sorted() == Array(0..<100))
    #expect(first == DataOrder.permutation(100, seed: 1, epoch: 0))
    #expect(first != DataOrder.permutation(100, seed: 1, epoch: 1))
    #expect(first != DataOrder.permutation(100, seed: 2, epoch: 0))
    #expect(first != Array(0..<100))
    #expect(DataOrder.permutation(3, seed: 1, epoch: 0, shuffles: false) == [0, 1, 2])
  }
}
