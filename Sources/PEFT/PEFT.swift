// One import for everything that a program usually needs.
@_exported import enum BLASKernels.Parallel
@_exported import Models
@_exported import NN
@_exported import PEFTCore
@_exported import PEFTSupport
@_exported import Tensors
@_exported import Tokenizers
@_exported import Training
@_exported import TunerDoRA
@_exported import TunerEDoRA
@_exported import TunerLoRA
