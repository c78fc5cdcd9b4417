"""Token generation: sampling, beam search, prefix trees and activation reuse."""
