import BLASKernels

extension Parameter {
  /// Moves the values of small parameters into one block of memory.
  ///
  /// An adapter of a small model has many tensors of a few hundred numbers, which in blocks of their
  /// own take up a fifth more than they hold. A parameter that is written to later gets a block of
  /// its own again, by copy on write. Nothing happens when the values are large together.
  ///
  /// - Parameter parameters: Those of one adapter.
  public static func shareBlock(_ parameters: [Parameter]) {
    // Blocks begin at multiples of 64 bytes, as kernels like it.
    let sizes = parameters.map { ($0.value.count + 15) / 16 * 16 }
    let total = sizes.reduce(0, +)
    guard total <= 1 << 18 else { return }
    let block = MutableSlice<Float>(count: total)
    var shapes: Set<[Int]> = []
    var start = 0
    for (parameter, size) in zip(parameters, sizes) {
      let value = parameter.value
      let place = block[start..<start + value.count]
      place.copy(from: value.slice)
      // Equal shapes are one array, too.
      let shape = shapes.insert(value.shape).memberAfterInsert
      parameter.assign(Tensor(shape: shape, slice: place.readOnly))
      start += size
    }
  }
}
